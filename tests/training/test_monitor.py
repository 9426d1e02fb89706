"""The monitor: in three lines of any loop, and as a Lightning callback."""

import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from collapse.constructed import images, network
from torch.utils.data import DataLoader, TensorDataset

import deepvit
from deepvit.collapse import CollapseProbe
from deepvit.collapse.probe import LOGGED, CollapseWarning
from deepvit.errors import UserError
from deepvit.report import diagnose
from deepvit.training.monitor import network_in


def test_three_lines_in_any_loop():
    model, logged = network(depth=3, start=9).train(), {}
    probe = CollapseProbe(model, images(4), every=5)
    for step in range(11):
        for name, value in probe(step).items():
            logged.setdefault(name, []).append((step, value))
    assert [step for step, _ in logged["collapse/entropy/deep"]] == [0, 5, 10]
    for key in LOGGED:
        assert f"collapse/{key}/deep" in logged
        assert f"collapse/{key}/last" in logged
    assert model.training
    assert logged["collapse/similar_blocks"][0][1] == 0
    assert 0 < probe.seconds <= probe.total_seconds
    assert probe.verdict.kind == "healthy"


def test_numbers_are_those_of_a_diagnosis():
    model, data = network("maps_alike", depth=6, start=3), images(4)
    with pytest.warns(CollapseWarning, match="at step 7: all maps alike from block 3 on"):
        numbers = CollapseProbe(model, data).measure(7)
    series = diagnose(model, [data], progress=False).measurements.series
    for key in LOGGED:
        values = series[key].values
        assert numbers[f"collapse/{key}/last"] == pytest.approx(values[-1], abs=1e-6)
        assert numbers[f"collapse/{key}/deep"] == pytest.approx(sum(values[3:]) / 3, abs=1e-6)
    assert numbers["collapse/similar_blocks"] == 2


def test_it_warns_once_when_collapse_sets_in():
    model = network("maps_alike", depth=6, start=3)
    collapsed = [block.attn.logits.clone() for block in model.blocks]
    for block in model.blocks:
        block.attn.logits = 2 * torch.randn_like(block.attn.logits)
    probe = CollapseProbe(model, images(4), every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe(0)
    for block, logits in zip(model.blocks, collapsed, strict=True):
        block.attn.logits.copy_(logits)
    with pytest.warns(CollapseWarning):
        probe(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe(2)
    assert probe.verdict.collapsed


def test_training_is_the_same_with_and_without_it():
    def trained(with_probe):
        torch.manual_seed(3)
        model = network(depth=2, start=9).train()
        probe = CollapseProbe(model, images(4), every=1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(2):
            if with_probe:
                probe(step)
            model(torch.nn.functional.dropout(images(4, seed=step), 0.1)).square().mean().backward()
            optimizer.step()
        return model.state_dict()

    plain, watched = trained(False), trained(True)
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every": 0}, "every=0"),
        ({"images": torch.zeros(3, 8, 8)}, "probe images"),
        ({"blocks": "9"}, "no block"),
    ],
)
def test_mistakes_are_named(arguments, words):
    options = {"images": images(2), **arguments}
    with pytest.raises(UserError, match=words):
        CollapseProbe(network(depth=2, start=9), **options).measure()


class Module(pl.LightningModule):
    def __init__(self, attribute="model"):
        super().__init__()
        setattr(self, attribute, network("maps_alike", depth=4, start=1))
        self.attribute = attribute

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(getattr(self, self.attribute)(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


class Log(pl.loggers.logger.Logger):
    name, version = "log", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


def fit(module, monitor, **options):
    log = Log()
    data = DataLoader(TensorDataset(images(8), torch.arange(8) % 5), batch_size=2)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=log,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, data)
    collapses = [entry for entry in caught if issubclass(entry.category, CollapseWarning)]
    return [row for row in log.rows if any(key.startswith("collapse/") for key in row[1])], collapses


def test_the_callback_logs_every_n_steps_and_warns_once():
    monitor = deepvit.CollapseMonitor(images(4), every_n_steps=3)
    rows, warned = fit(Module(), monitor)
    assert [step for step, _ in rows] == [0, 3, 6]
    assert all("collapse/seconds" in numbers for _, numbers in rows)
    assert len(warned) == 1
    assert monitor.verdict.from_block == 1


def test_accumulated_batches_are_one_step_and_the_first_batch_serves_as_probe():
    rows, _ = fit(
        Module("net"),
        deepvit.CollapseMonitor(every_n_steps=2, model_attribute="net"),
        accumulate_grad_batches=2,
    )
    assert [step for step, _ in rows] == [0, 2]


def test_an_unknown_attribute_is_named():
    with pytest.raises(UserError, match="model_attribute='network'"):
        fit(Module(), deepvit.CollapseMonitor(images(2), model_attribute="network"))


@pytest.mark.parametrize("attribute", ["net", "vit"])
def test_the_network_is_found_under_any_name(attribute):
    rows, _ = fit(Module(attribute), deepvit.CollapseMonitor(images(4), every_n_steps=8))
    assert [step for step, _ in rows] == [0]


def test_the_network_is_found_beside_others_and_through_wrappers():
    holder = torch.nn.Module()
    net = network(depth=2, start=9)
    holder.loss, holder.head, holder.plain = (
        torch.nn.Linear(4, 4),
        torch.nn.Identity(),
        torch.nn.Conv2d(3, 4, 2),
    )
    holder.net = torch.compile(net)
    training = [part.training for part in holder.modules()]
    assert network_in(holder, images(2)) is net
    assert [part.training for part in holder.modules()] == training
    holder.net = torch.nn.DataParallel(net)
    assert network_in(holder, images(2)) is net
    holder.teacher = network(depth=2, start=9)
    with pytest.raises(UserError, match=r"several networks with attention \(net, teacher\)"):
        network_in(holder, images(2))
    holder.model = network(depth=2, start=9)
    assert network_in(holder, images(2)) is holder.model
    assert network_in(net, images(2)) is net
    with pytest.raises(UserError, match=r"no network .*its parts: 0, 1"):
        network_in(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), images(2))


VIT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
       "patch_size": 4, "num_labels": 3}  # fmt: skip


def test_hugging_faces_callbacks_call_it():
    """Through transformers' own handler, which is what its Trainer drives."""
    from transformers import TrainerControl, TrainerState, ViTConfig, ViTForImageClassification
    from transformers.trainer_callback import CallbackHandler

    logged, state = [], TrainerState(is_world_process_zero=True)
    trainer = SimpleNamespace(
        model=ViTForImageClassification(ViTConfig(**VIT)).train(),
        log=lambda numbers: logged.append((state.global_step, numbers)),
    )
    callback = deepvit.CollapseTrainerCallback(trainer, torch.randn(4, 3, 16, 16), every_n_steps=2)
    handler = CallbackHandler([callback], trainer.model, None, None, None)
    handler.on_train_begin(None, state, TrainerControl())
    for step in range(1, 5):
        state.global_step = step
        handler.on_step_end(None, state, TrainerControl())
    assert [step for step, _ in logged] == [0, 2, 4]
    assert all("collapse/entropy/deep" in numbers for _, numbers in logged)
    assert trainer.model.training
    assert callback.verdict is not None
    state.is_world_process_zero = False
    handler.on_step_end(None, state, TrainerControl())
    assert len(logged) == 3


def test_hugging_faces_trainer_logs_it(tmp_path):
    hf = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = hf.ViTForImageClassification(hf.ViTConfig(**VIT))
    data = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 3} for i in range(8)]
    options = hf.TrainingArguments(str(tmp_path), max_steps=4, per_device_train_batch_size=2, use_cpu=True, report_to=[],
                                   disable_tqdm=True, save_strategy="no", logging_strategy="no")  # fmt: skip
    trainer = hf.Trainer(model, options, train_dataset=data)
    trainer.add_callback(deepvit.CollapseTrainerCallback(trainer, torch.randn(4, 3, 16, 16), every_n_steps=2))
    trainer.train()
    rows = [row for row in trainer.state.log_history if "collapse/entropy/deep" in row]
    assert [row["step"] for row in rows] == [0, 2, 4]


def test_a_trainer_of_text_is_refused():
    from transformers import BertConfig, BertModel

    text = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9))
    with pytest.raises(UserError, match="no part that takes images"):
        deepvit.CollapseTrainerCallback(SimpleNamespace(model=text), torch.randn(4, 3, 16, 16))
