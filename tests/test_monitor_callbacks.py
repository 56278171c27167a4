"""The monitor in PyTorch Lightning and in the Hugging Face Trainer, with the real packages on the CPU."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
import transformers
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import bnsmooth_cli as bns
from bnsmooth_cli import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]  # fmt: skip
OPTIONS = {"every": 2, "budget": None, "measures": {"landscape": {"alphas": [1.0]}, "smoothness": {"alphas": [1.0]}}}


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()


def test_the_package_and_the_monitor_import_neither():
    code = "import sys, bnsmooth_cli as bns; bns.Monitor; assert not {'lightning', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [("lightning", "LightningMonitor", "lightning"), ("transformers", "TrainerMonitor", "transformers")],
)
@pytest.mark.slow
def test_without_the_extra_the_error_names_it(module, name, extra):
    code = (
        f"import sys; sys.modules['{module}'] = sys.modules['{module}.pytorch'] = None\n"
        f"from bnsmooth_cli import *\nimport bnsmooth_cli as bns\nbns.{name}(None) if '{name}' == 'TrainerMonitor' "
        f"else bns.{name}()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith(f"{name}: needs the extra: pip install 'bnsmooth[{extra}]'")


class Module(pl.LightningModule):
    """A module that logs, keeps metrics and counts, and writes to its logger itself."""

    def __init__(self, automatic=True):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.losses = torchmetrics.CatMetric()
        self.automatic_optimization = automatic
        self.calls = 0

    def training_step(self, batch, batch_idx):
        self.calls += 1
        x, y = batch
        outputs = self.net(x)
        loss = F.cross_entropy(outputs, y)
        self.accuracy(outputs, y)
        self.losses.update(loss.detach())
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"loss": loss})
        self.logger.log_metrics({"own": loss.item()}, step=self.global_step)
        return {"loss": loss}

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(folder, callbacks, accumulate=1, epochs=1, module=None, checkpoint=None):
    pl.seed_everything(0, verbose=False)
    module = module or Module()
    data = DataLoader(TensorDataset(torch.randn(48, 4), torch.randint(3, (48,))), batch_size=8, shuffle=True)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=CSVLogger(folder, "csv", version=""), callbacks=callbacks,
        accumulate_grad_batches=accumulate, log_every_n_steps=1, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=checkpoint)
    return module, trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_is_measured_and_trains_logs_and_counts_as_before(tmp_path, accumulate):
    plain, _ = fit(tmp_path / "plain", [], accumulate)
    callback = bns.LightningMonitor(folder=tmp_path / "mine", **OPTIONS)
    monitored, trainer = fit(tmp_path / "monitored", [callback], accumulate)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, monitored.state_dict()[name]), name
    assert plain.calls == monitored.calls == 6
    assert torch.equal(plain.losses.compute(), monitored.losses.compute())
    written = [(tmp_path / name / "csv/metrics.csv").read_text() for name in ("plain", "monitored")]
    assert written[0] == written[1]
    rows = bns.read_table(tmp_path / "mine/smoothness.parquet")
    assert rows["step"].tolist() == [0, 2, 4][: 3 if accumulate == 1 else 2]
    seen = plain.losses.compute()[rows["step"] * accumulate]  # of the first batch of each step
    assert rows["loss"].tolist() == pytest.approx(seen.tolist(), rel=1e-6)
    assert rows["step_lr"].tolist() == pytest.approx([0.01 * 0.9**step for step in rows["step"]])
    assert {*rows["problem"]} == {"loop:Module"}
    assert "log" not in vars(monitored)
    assert type(trainer.logger) is CSVLogger


def test_lightning_resumes_at_the_step_of_its_checkpoint(tmp_path):
    callback = bns.LightningMonitor(folder=tmp_path / "mine", **OPTIONS)
    _, trainer = fit(tmp_path, [callback])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="is there, with steps up to 4; give another folder"):
        fit(tmp_path, [callback])
    fit(tmp_path, [callback], epochs=2, checkpoint=tmp_path / "last.ckpt")
    assert bns.read_table(tmp_path / "mine/smoothness.parquet")["step"].tolist() == [0, 2, 4, 6, 8, 10]


def test_lightning_with_manual_optimisation_is_refused(tmp_path):
    with pytest.raises(InputError, match="needs automatic optimisation with one optimizer"):
        fit(tmp_path, [bns.LightningMonitor(folder=tmp_path / "mine")], module=Module(automatic=False))


class Weighted(transformers.Trainer):
    """A Trainer with a loss of its own, which takes the labels out of the inputs."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)
        return (loss, outputs) if return_outputs else loss


def trained(folder, monitored, accumulate=1, trainer_class=transformers.Trainer, dropout=0.0, warmup=0, **options):
    """A tiny GPT-2 that a Trainer trains for six steps."""
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=dropout, embd_pdrop=0.0,
        attn_pdrop=0.0, attn_implementation="eager",
    )  # fmt: skip
    tokens = [torch.randint(20, (8,)) for _ in range(24)]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=accumulate,
        learning_rate=1e-2, warmup_steps=warmup, logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", eval_strategy="steps", eval_steps=3,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in tokens]
    trainer = trainer_class(transformers.GPT2LMHeadModel(config), arguments, train_dataset=data, eval_dataset=data[:4])
    if monitored:
        trainer.add_callback(bns.TrainerMonitor(trainer, folder=folder / "mine", **OPTIONS, **options))
    trainer.train()
    assert "compute_loss" not in vars(trainer)
    return trainer


def logged(trainer, *names):
    return [{n: entry[n] for n in names if n in entry} for entry in trainer.state.log_history]


@pytest.mark.parametrize(
    "how",
    [{}, {"accumulate": 2}, {"trainer_class": Weighted}, {"dropout": 0.1, "objective": "eval", "warmup": 3}],
    ids=["plain", "accumulated", "own-loss", "dropout-and-warm-up"],
)
@pytest.mark.fast(1)
def test_the_trainer_is_measured_and_trains_and_logs_as_before(tmp_path, how):
    plain = trained(tmp_path / "plain", False, **how)
    random = torch.rand(3)
    monitored = trained(tmp_path / "monitored", True, **how)
    assert torch.equal(random, torch.rand(3))
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, monitored.model.state_dict()[name]), name
    names = ("loss", "eval_loss", "grad_norm", "learning_rate", "step")
    assert json.dumps(logged(plain, *names)) == json.dumps(logged(monitored, *names))
    evaluated = ".eval" if "objective" in how else ""
    rows = bns.read_table(tmp_path / f"monitored/mine/smoothness{evaluated}.parquet")
    assert rows["step"].tolist() == ([2, 4] if "warmup" in how else [0, 2, 4])  # at step 0, its learning rate is 0
    assert {*rows["lr"]} == {0.01}
    if "accumulate" not in how and "objective" not in how:
        losses = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]
        assert rows["loss"].tolist() == pytest.approx([float(losses[step]) for step in rows["step"]], rel=1e-3)


@pytest.mark.slow
def test_a_trainer_that_fails_and_trains_again_is_monitored_again(tmp_path):
    trainer = trained(tmp_path, True)
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, bns.TrainerMonitor)]
    with pytest.raises(InputError, match="is there, with steps up to 4; give another folder"):
        trainer.train()
    callback._options["folder"] = tmp_path / "again"
    trainer.train()
    assert bns.read_table(tmp_path / "again/smoothness.parquet")["step"].tolist() == [0, 2, 4]
