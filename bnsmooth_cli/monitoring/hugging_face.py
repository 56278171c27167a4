"""The monitor as a callback of the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.monitoring.monitor import Monitor

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback
else:
    try:
        from transformers import TrainerCallback
    except ImportError:  # which the constructor says
        TrainerCallback = object


class TrainerMonitor(TrainerCallback):
    """Measures the model of a Hugging Face Trainer: `trainer.add_callback(bns.TrainerMonitor(trainer, ...))`.

    What is measured is the loss that the Trainer's `compute_loss` returns for the batch, yours included, as a function
    of the parameters, before the optimiser's step. Steps are those of `trainer.state.global_step`. With gradient
    accumulation, it is the mean loss of the first micro-batch of a step. Callbacks do not get batches, so while it
    trains, `trainer.compute_loss` is wrapped. Training has to run in one process on one device.

    Models with dropout are measured with `objective="eval"`, or with dropout 0.

    Args:
        trainer: The Trainer.
        **options: The arguments of `bns.Monitor` besides the model, the loss, the optimiser and `start_step`.

    Attributes:
        monitor: The monitor, from the start of training on.

    Raises:
        InputError: If `transformers` is not installed. At the start of training, if the model cannot be monitored.
    """

    def __init__(self, trainer: Trainer, **options: Any) -> None:
        if TrainerCallback is object:
            raise InputError("TrainerMonitor: needs the extra: pip install 'bnsmooth[transformers]'")
        self._trainer, self._options = trainer, options
        self._begins = False  # whether the next batch is the first one of a step
        self._stack = ExitStack()  # of what ends with training
        self.monitor: Monitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to monitor at the present step."""
        self._stack.close()  # of training that an error has ended
        trainer = self._trainer
        if args.world_size > 1 or args.n_gpu > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise InputError("TrainerMonitor: needs one process and one device, without DeepSpeed and FSDP")
        compute_loss, alone = trainer.compute_loss, args.gradient_accumulation_steps == 1
        optimizer = kwargs["optimizer"]
        while hasattr(optimizer, "optimizer"):  # accelerate's wrapper
            optimizer = optimizer.optimizer

        def loss(inputs: dict[str, Any], items: Any) -> Tensor:
            # A copy, as `compute_loss` may take the labels out. The items are those of all micro-batches.
            of_batch: Tensor = compute_loss(trainer.model, dict(inputs), num_items_in_batch=items if alone else None)
            return of_batch

        monitor = Monitor(trainer.model, loss, optimizer=optimizer, start_step=state.global_step, **self._options)
        self.monitor = self._stack.enter_context(monitor)

        def monitored(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            if self._begins:
                self._begins, monitor.next_step = False, state.global_step
                monitor.step(inputs, named.get("num_items_in_batch"))
            return compute_loss(model, inputs, *more, **named)

        self._stack.enter_context(_replaced(trainer, monitored))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The next batch is the first one of a step."""
        self._begins = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete the tables."""
        self._stack.close()


@contextmanager
def _replaced(trainer: Trainer, compute_loss: Any) -> Iterator[None]:
    """Let a Trainer use another `compute_loss`."""
    own = {name: value for name, value in vars(trainer).items() if name == "compute_loss"}
    vars(trainer)["compute_loss"] = compute_loss
    try:
        yield
    finally:
        del vars(trainer)["compute_loss"]
        vars(trainer).update(own)
