"""What stands in deploy/, as far as it can be tried without a container engine: files, command lines, promises."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


DOCKERFILE = instructions(DEPLOY / "Dockerfile")


def all_of(name: str) -> list[str]:
    return [rest for instruction, rest in DOCKERFILE if instruction == name]


def documents() -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / "ray-serve.yaml").read_text()))


def pods() -> dict[str, dict]:
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in documents() if one["kind"] == "Deployment"
    }


def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def command_lines() -> dict[str, list[str]]:
    """What each file has `realcustom serve` called with."""
    entry = json.loads(all_of("ENTRYPOINT")[0])
    assert entry[:2] == ["realcustom", "serve"]
    unit = re.search(r"^ExecStart=(.*)$", (DEPLOY / "realcustom.service").read_text(), re.M)[1]
    front = pods()["realcustom-front"]["containers"][0]["args"][0]
    return {
        "Dockerfile": entry[2:] + json.loads(all_of("CMD")[0]),
        "compose": entry[2:] + compose()["services"]["realcustom"]["command"],
        "systemd": shlex.split(unit)[2:],
        "kubernetes": shlex.split(front.partition("realcustom serve ")[2]),
    }


def parsed(words: list[str]) -> dict:
    """The options of a command line as the command reads them."""
    from realcustom.cli.app import app

    command = typer.main.get_command(app).commands["serve"]
    return command.make_context("serve", list(words)).params


@pytest.mark.parametrize("place", ["Dockerfile", "compose", "systemd", "kubernetes"])
def test_command_lines_are_understood_and_need_a_token(place):
    options = parsed(command_lines()[place])
    assert options["tokens"] is not None
    assert str(options["data"]).startswith("/")


def test_stopping_takes_longer_than_draining():
    lines = command_lines()
    seconds = {
        "compose": int(compose()["services"]["realcustom"]["stop_grace_period"].removesuffix("s")),
        "systemd": int(re.search(r"TimeoutStopSec=(\d+)", (DEPLOY / "realcustom.service").read_text())[1]),
        "kubernetes": pods()["realcustom-front"]["terminationGracePeriodSeconds"],
    }
    for place, most in seconds.items():
        assert parsed(lines[place])["drain"] + 15 < most, place


def test_the_image_runs_as_nobody_and_says_whether_it_is_ready():
    assert all_of("FROM") == ["${BASE} AS build", "${BASE}"]
    user = all_of("USER")[-1]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    last = max(index for index, (name, _) in enumerate(DOCKERFILE) if name in ("RUN", "COPY"))
    assert [name for name, _ in DOCKERFILE].index("USER") > last, "what is installed is not its own"
    assert "/v1/ready" in all_of("HEALTHCHECK")[0]
    (probe,) = re.findall(r"CMD (\[.*\])", all_of("HEALTHCHECK")[0])
    refused = subprocess.run([sys.executable, *json.loads(probe.replace(":7860", ":1"))[1:]], capture_output=True)
    assert b"Connection refused" in refused.stderr, "it is a program that can fail"
    assert all("-dev" not in rest and "ADD" not in rest for rest in all_of("RUN"))
    for shell in all_of("RUN"):
        assert subprocess.run(["bash", "-n", "-c", shell]).returncode == 0, shell


def test_the_wheel_is_built_from_what_is_copied(tmp_path):
    """The build's steps but the download of the locked packages, in a folder with nothing but the copied files."""
    build, target = tmp_path / "build", tmp_path / "target"
    build.mkdir()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text()
    for rest in all_of("COPY"):
        if rest.startswith("--from"):
            continue
        *sources, place = rest.split()
        for source in sources:
            assert f"!{source}" in ignored or source.startswith("requirements"), f"{source} is not sent to the engine"
            if (ROOT / source).is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, build / place, ignore=skip)
            else:
                shutil.copy(ROOT / source, build / place)
    locks = re.findall(r"-r (\S+)", " ".join(all_of("RUN")))
    assert locks
    assert all((build / lock).is_file() for lock in locks)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), "."], cwd=build, check=True)
    code = "from realcustom.cli import main; import realcustom; print(realcustom.__file__); main()"
    shown = subprocess.run(
        [sys.executable, "-c", code, "serve", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(target) in shown.stdout.splitlines()[0]
    assert "--tokens" in shown.stdout
    assert list(target.glob("realcustom/examples/*")), "the examples came along"


def test_compose_shows_nothing_but_the_proxy():
    services = compose()["services"]
    server = services["realcustom"]
    assert "ports" not in server
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in server["security_opt"]
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    written = {volume.partition(":")[2] for volume in server["volumes"]} | set(server["tmpfs"])
    assert written == {*json.loads(all_of("VOLUME")[0]), "/tmp"}
    named = {volume.partition(":")[0] for one in services.values() for volume in one["volumes"]} - {"./Caddyfile"}
    assert named == set(compose()["volumes"])
    proxied = (DEPLOY / "Caddyfile").read_text()
    assert f"reverse_proxy realcustom:{all_of('EXPOSE')[0]}" in proxied
    assert proxied.count("{") == proxied.count("}")


@pytest.mark.parametrize("name", ["realcustom-front", "realcustom-worker"])
def test_pods_are_locked_down(name):
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    locked = container["securityContext"]
    assert locked["readOnlyRootFilesystem"] is True
    assert locked["allowPrivilegeEscalation"] is False
    assert locked["capabilities"] == {"drop": ["ALL"]}
    assert "limits" in container["resources"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_cluster_finds_itself_and_lets_nobody_else_in():
    found = {(one["kind"], one["metadata"]["name"]): one["spec"] for one in documents()}
    front = pods()["realcustom-front"]["containers"][0]
    worker = pods()["realcustom-worker"]["containers"][0]
    assert "--address=realcustom-ray:6379" in worker["command"]
    assert found["Service", "realcustom-ray"]["ports"][0]["port"] == 6379
    assert found["Service", "realcustom-ray"]["clusterIP"] == "None", "Ray uses many ports"
    assert front["readinessProbe"]["httpGet"]["path"] == "/v1/ready"
    assert front["livenessProbe"]["httpGet"]["path"] == "/v1/health", "a full disk is no reason to start it again"
    assert found["Deployment", "realcustom-front"]["replicas"] == 1
    assert found["Deployment", "realcustom-front"]["strategy"] == {"type": "Recreate"}
    inside, outside = found["NetworkPolicy", "realcustom"]["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": {"app": "realcustom"}}}]}
    assert outside == {"ports": [{"port": front["ports"][0]["containerPort"]}]}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path):
    text = (DEPLOY / "realcustom.service").read_text()
    unit = tmp_path / "realcustom.service"
    unit.write_text(text.replace("/opt/realcustom/bin/realcustom", "/bin/true"))
    told = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    mine = [line for line in told.stderr.splitlines() if "realcustom.service" in line]
    assert not mine, mine
    wrong = tmp_path / "wrong.service"
    wrong.write_text(text.replace("ProtectSystem=strict", "ProtectSystem=sometimes"))
    told = subprocess.run(["systemd-analyze", "verify", "--man=no", str(wrong)], capture_output=True, text=True)
    assert "sometimes" in told.stderr, "it reads what it is given"
