"""One training step of the release: times, noised latents, prediction, loss, every gradient, the step of AdamW."""

import pytest
import torch

from realcustom.models.flow import interpolated
from realcustom.models.uno import PLACES, pack
from realcustom.models.uno_lora import places_of, released_state, share_downs
from realcustom.training.uno import TRAINING_GUIDANCE, FlowBatch, flow_loss, flow_prediction, time_table

from .flux_small import build_uno, stored_latents


@pytest.fixture
def uno(reference_folder):
    transformer = build_uno(reference_folder)
    share_downs(transformer)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return transformer


def cases(reference):
    return list(reference.meta["cases"].items())


def batch_of(given):
    return FlowBatch(
        latents=given["x_1_latent"], references=stored_latents(given), text=given["txt"], pooled=given["vec"]
    )


def gradients(transformer):
    """The gradients under the release's names."""
    found = {}
    for name, modules in places_of(transformer).items():
        layers = [transformer.get_submodule(module) for module in modules]
        found[f"{name}.down.weight"] = layers[0].lora_A["uno"].weight.grad
        found[f"{name}.up.weight"] = torch.cat([layer.lora_B["uno"].weight.grad for layer in layers])
    return found


def table_of(load_reference, given, expected):
    """The training table that the case's times were drawn from."""
    schedules = load_reference("uno/positions").meta["schedules"]
    for info in schedules.values():
        if "resolution" in info:
            table = time_table(info["resolution"])
            if torch.allclose(table[given["t_index"].long()], expected, atol=1e-6):
                return table
    raise AssertionError("no training table holds the stored times")


def test_times_loss_and_gradients(load_reference, max_difference, uno):
    reference = load_reference("uno/training")
    for case, info in cases(reference):
        given, expected = reference.under(f"{case}/in/"), reference.under(f"{case}/out/")
        assert info["guidance"] == TRAINING_GUIDANCE
        times = table_of(load_reference, given, expected["t"])[given["t_index"].long()]
        x_t = interpolated(pack(given["x_1_latent"]), given["x_0"], times)
        assert max_difference(x_t, expected["x_t"]) <= 1e-6
        uno.zero_grad(set_to_none=True)
        prediction, target = flow_prediction(uno, batch_of(given), given["x_0"], times, PLACES[info["pe"]])
        assert max_difference(target, expected["target"]) <= 1e-6
        assert max_difference(prediction.detach(), expected["pred"]) <= 2e-5
        loss = flow_loss(prediction, target)
        assert abs(loss.item() - expected["loss"].item()) <= 1e-5
        loss.backward()
        stored, found = reference.under(f"{case}/grad/"), gradients(uno)
        assert found.keys() == stored.keys()
        for name, gradient in stored.items():
            assert max_difference(found[name], gradient) <= 1e-4 * gradient.abs().max().item(), (case, name)


def test_one_step_of_the_optimizer(load_reference, max_difference, reference_folder):
    reference = load_reference("uno/training")
    defaults = {name: entry["default"] for name, entry in reference.meta["train_defaults"].items()}
    for case, info in cases(reference):
        transformer = build_uno(reference_folder)
        share_downs(transformer)
        trained = [p.requires_grad_() for name, p in transformer.named_parameters() if "lora_" in name]
        optimizer = torch.optim.AdamW(
            trained,
            lr=defaults["learning_rate"],
            betas=tuple(defaults["adam_betas"]),
            eps=defaults["adam_eps"],
            weight_decay=defaults["adam_weight_decay"],
        )
        given, expected = reference.under(f"{case}/in/"), reference.under(f"{case}/out/")
        flow_loss(
            *flow_prediction(transformer, batch_of(given), given["x_0"], expected["t"], PLACES[info["pe"]])
        ).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, defaults["max_grad_norm"])
        assert abs(norm.item() - expected["grad_norm"].item()) <= 1e-5
        optimizer.step()
        state = released_state(transformer)
        after = reference.under(f"{case}/after/")
        assert after
        for name, tensor in after.items():
            assert max_difference(state[name], tensor) <= 1e-5, (case, name)
