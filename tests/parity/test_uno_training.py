"""One training step of the release: times, noised latents, prediction, loss, every gradient, the step of AdamW."""

import torch
from safetensors.torch import load_file

from realcustom.models.flow import interpolated
from realcustom.models.uno import PLACES, pack
from realcustom.models.uno_lora import SharedLora
from realcustom.training.uno import TRAINING_GUIDANCE, FlowBatch, flow_loss, flow_prediction, time_table

from .flux_small import build_flux, lora_file, stored_latents


def lora_of(reference_folder):
    """The reference's transformer and its LoRA as it is trained."""
    transformer, state = build_flux(reference_folder), load_file(lora_file(reference_folder))
    lora = SharedLora(transformer, next(iter(state.values())).shape[0])
    lora.load_released(state)
    assert all(torch.equal(lora.released_state()[name], tensor) for name, tensor in state.items())
    return transformer, lora


def cases(reference):
    return list(reference.meta["cases"].items())


def batch_of(given):
    return FlowBatch(
        latents=given["x_1_latent"], references=stored_latents(given), text=given["txt"], pooled=given["vec"]
    )


def table_of(load_reference, given, expected):
    """The training table that the case's times were drawn from."""
    schedules = load_reference("uno/positions").meta["schedules"]
    for info in schedules.values():
        if "resolution" in info:
            table = time_table(info["resolution"])
            if torch.allclose(table[given["t_index"].long()], expected, atol=1e-6):
                return table
    raise AssertionError("no training table holds the stored times")


def test_times_loss_and_gradients(load_reference, max_difference, reference_folder):
    reference = load_reference("uno/training")
    transformer, lora = lora_of(reference_folder)
    for case, info in cases(reference):
        given, expected = reference.under(f"{case}/in/"), reference.under(f"{case}/out/")
        assert info["guidance"] == TRAINING_GUIDANCE
        times = table_of(load_reference, given, expected["t"])[given["t_index"].long()]
        x_t = interpolated(pack(given["x_1_latent"]), given["x_0"], times)
        assert max_difference(x_t, expected["x_t"]) <= 1e-6
        lora.zero_grad(set_to_none=True)
        with lora.attached(transformer):
            prediction, target = flow_prediction(transformer, batch_of(given), given["x_0"], times, PLACES[info["pe"]])
        assert max_difference(target, expected["target"]) <= 1e-6
        assert max_difference(prediction.detach(), expected["pred"]) <= 2e-5
        loss = flow_loss(prediction, target)
        assert abs(loss.item() - expected["loss"].item()) <= 1e-5
        loss.backward()
        stored = reference.under(f"{case}/grad/")
        names = lora.released_state()
        found = dict(zip(names, [parameter.grad for parameter in lora.parameters()], strict=True))
        assert found.keys() == stored.keys()
        for name, gradient in stored.items():
            assert max_difference(found[name], gradient) <= 1e-4 * gradient.abs().max().item(), (case, name)


def test_one_step_of_the_optimizer(load_reference, max_difference, reference_folder):
    reference = load_reference("uno/training")
    defaults = {name: entry["default"] for name, entry in reference.meta["train_defaults"].items()}
    for case, info in cases(reference):
        transformer, lora = lora_of(reference_folder)
        trained = list(lora.parameters())
        optimizer = torch.optim.AdamW(
            trained,
            lr=defaults["learning_rate"],
            betas=tuple(defaults["adam_betas"]),
            eps=defaults["adam_eps"],
            weight_decay=defaults["adam_weight_decay"],
        )
        given, expected = reference.under(f"{case}/in/"), reference.under(f"{case}/out/")
        with lora.attached(transformer):
            pair = flow_prediction(transformer, batch_of(given), given["x_0"], expected["t"], PLACES[info["pe"]])
        flow_loss(*pair).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, defaults["max_grad_norm"])
        assert abs(norm.item() - expected["grad_norm"].item()) <= 1e-5
        optimizer.step()
        state = lora.released_state()
        after = reference.under(f"{case}/after/")
        assert after
        for name, tensor in after.items():
            assert max_difference(state[name], tensor) <= 1e-5, (case, name)
