"""Custom optimisers, which the tests name as `--optimizer own_optimisers:noisy`."""

from __future__ import annotations

import torch


class Noisy(torch.optim.Optimizer):
    """SGD with noise, and with a state in its groups, in types of its own and in Python numbers."""

    def __init__(self, parameters, lr=0.01, decay=0.0):
        super().__init__(parameters, {"lr": lr, "decay": decay, "taken": 0, "scale": 1.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["taken"] += 1
            group["scale"] *= 0.99
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                state["sum"] = state.get("sum", torch.zeros_like(p, dtype=torch.float64)) + p.grad.double() ** 2
                p.grad.add_(torch.randn_like(p), alpha=0.01)  # in place, as some optimisers do
                p.sub_(group["lr"] * group["scale"] * p.grad / (state["sum"].sqrt().to(p) + 0.1))


def noisy(parameters):
    return Noisy(parameters)


def grouped(parameters):
    """Two groups of different learning rates, in another order than the parameters'."""
    return torch.optim.AdamW([{"params": parameters[2:], "lr": 0.002}, {"params": parameters[:2]}], lr=0.001)


def closing(parameters):
    return torch.optim.LBFGS(parameters)


def unkept(parameters):
    """An optimiser with a state that no checkpoint can hold."""
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    optimizer.param_groups[0]["rule"] = len
    return optimizer


def forgetful(parameters):
    """An optimiser that does not take back its state."""

    class Forgetful(Noisy):
        def load_state_dict(self, state_dict):
            pass

    return Forgetful(parameters)


class Halving(torch.optim.SGD):
    """SGD with a schedule of its own: each step halves its learning rate."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["lr"] /= 2


def halving(parameters):
    return Halving(parameters, lr=1e-4)


def scheduled(parameters):
    """SGD with a schedule that counts its steps for itself."""
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


class Lookahead(torch.optim.SGD):
    """SGD that returns half-way to where it was six steps ago, by a count that is no part of its state."""

    steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        if self.steps % 6 == 0:
            self.slow = [p.clone() for group in self.param_groups for p in group["params"]]
        super().step()
        self.steps += 1
        if self.steps % 6 == 0:
            for p, slow in zip((p for group in self.param_groups for p in group["params"]), self.slow, strict=True):
                p.lerp_(slow, 0.5)


def looking_ahead(parameters):
    return Lookahead(parameters, lr=0.01)
