"""Training steps, and on a GPU the CUDA graph that replays them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from models.core.recommender import Recommender

NO_CUDA_GRAPH = "SPECTRAN_NO_CUDA_GRAPH"  # set: every step is launched as it is, on a GPU too
Step = Callable[[Tensor], tuple[Tensor, Tensor]]  # a batch of sequences (B, L + 1) -> its loss and its number of targets
WARM_UP = 3  # steps before a capture: libraries choose their kernels and the optimiser makes its state
PROOF = 2  # steps done both ways before a graph is trusted: the second sees the first one's update, and draws of its own
TOLERANCE = 1e-4  # of a loss, relative: other draws or a missing update are further off than that, another order of sums is not


class Steps:
    """Trains a model batch by batch. On a GPU a step is captured once as a CUDA graph and replayed: one launch for hundreds.

    A graph is kept only if replaying it gives the losses of the same steps done one kernel at a time, from the same state and
    random numbers; else, and where a step cannot be captured, a line says so and every step is launched as it is.
    """

    def __init__(
        self,
        model: Recommender,
        optimisers: list[torch.optim.Optimizer],
        generator: torch.Generator,
        precision: Callable[[], AbstractContextManager[Any]],
        batch_size: int,
        capture: Callable[["Steps", Tensor], Step] | None = None,
    ) -> None:
        """capture: how a step is recorded on a batch of a fixed shape; None: every step is launched as it is."""
        self.model = model
        self.optimisers = optimisers
        self.generator = generator
        self.precision = precision
        self.batch_size = batch_size
        self.capture = capture
        self.replayed: Step | None = None
        self.warm = 0

    def epoch(self, train: Tensor) -> tuple[Tensor, Tensor]:
        """All users in random order, as often as the backbone asks for; the loss of every step and its targets, float64.

        Losses stay on the device until the epoch is over: looking at each would wait for the GPU at every step.
        """
        self.model.train()
        done: list[tuple[Tensor, Tensor]] = []
        for _ in range(self.model.backbone.passes_per_epoch):
            order = torch.randperm(len(train), generator=self.generator, device=train.device)
            batches = [train[batch] for batch in order.split(self.batch_size)]
            if train.device.type != "cpu":  # users without items fill the last batch, so that all steps have one shape
                missing = self.batch_size - len(batches[-1])
                batches[-1] = F.pad(batches[-1], (0, 0, 0, missing), value=self.model.adapter.n_items)
            while batches:
                if self.capture and self.replayed is None and self.warm >= WARM_UP and len(batches) >= PROOF:
                    done += self._try_capture(batches[:PROOF])
                    del batches[:PROOF]
                else:
                    done.append((self.replayed or self.step)(batches.pop(0)))
        if not done:
            return torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        losses, targets = zip(*done, strict=True)
        return torch.stack(losses).double().cpu(), torch.stack(targets).double().cpu()

    def step(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """One update, in a precision's context of its own: autocast keeps its copies of the weights as long as one lasts."""
        self.warm += 1
        with self.precision():
            loss, count = self.model.loss(batch, self.generator)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()
        return loss.detach(), count

    def _try_capture(self, batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Steps on `batches`, after which `replayed` is a graph if they went the same way with it, or `capture` is None."""
        assert self.capture is not None
        expected: list[tuple[Tensor, Tensor]] = []
        try:
            before = self._state()
            expected = [self.step(batch) for batch in batches]
            after = self._state()
        except torch.cuda.OutOfMemoryError:
            self._give_up("no memory for copies of weights and moments")
            return expected or [self.step(batch) for batch in batches]
        self._restore(before)
        try:
            replayed = self.capture(self, batches[0])
            found = [replayed(batch) for batch in batches]
            proved = all(torch.allclose(seen[0], known[0], rtol=TOLERANCE) for seen, known in zip(found, expected, strict=True))
            reason = "its losses were others"
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a capture hides what ended it
            proved, reason = False, str(cause).splitlines()[0]
        if proved:
            self.replayed = replayed
            return found
        self._give_up(reason)
        self._recover(after, reason)
        return expected

    def _give_up(self, reason: str) -> None:
        print(f"steps: no CUDA graph, every kernel is launched by itself ({reason})", flush=True)
        self.capture = None

    def _recover(self, state: tuple[list[Tensor], list[Tensor]], reason: str) -> None:
        """Put everything back after a failed capture; raise UserError where torch's generators did not outlive it."""
        try:
            if self.generator.device.type == "cuda":  # a generator may take itself for captured; a state of its own is not
                for used in (self.generator, torch.cuda.default_generators[self.generator.device.index or 0]):
                    used.graphsafe_set_state(used.clone_state())
            self._restore(state)
            for generator in (self.generator, None):
                torch.rand((), generator=generator, device=self.generator.device)
            set_random_states(self.generator, state[1])
        except RuntimeError:
            raise UserError(
                f"a training step could not be captured as a CUDA graph ({reason}), and torch's random states went with it; "
                f"start again with {NO_CUDA_GRAPH}=1 in the environment: it goes on after the last finished epoch"
            ) from None

    def _tensors(self) -> list[Tensor]:
        """Everything that a step changes, but for random states."""
        moments = [
            value
            for optimiser in self.optimisers
            for state in optimiser.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return [*self.model.parameters(), *moments]

    def _state(self) -> tuple[list[Tensor], list[Tensor]]:
        return [tensor.detach().clone() for tensor in self._tensors()], random_states(self.generator)

    def _restore(self, state: tuple[list[Tensor], list[Tensor]]) -> None:
        """In place: a graph knows addresses."""
        with torch.no_grad():
            for tensor, saved in zip(self._tensors(), state[0], strict=True):
                tensor.copy_(saved)
        set_random_states(self.generator, state[1])


def random_states(generator: torch.Generator) -> list[Tensor]:
    """What every draw of a step depends on: the generator of negatives, torch's own, and those of the GPUs in use."""
    gpu = torch.cuda.get_rng_state_all() if generator.device.type == "cuda" else []
    return [generator.get_state(), torch.get_rng_state(), *gpu]


def set_random_states(generator: torch.Generator, states: list[Tensor]) -> None:
    """Put back what `random_states` returned."""
    own, default, *gpu = states
    generator.set_state(own)
    torch.set_rng_state(default)
    if gpu:
        torch.cuda.set_rng_state_all(gpu)


def cuda_graph(steps: Steps, example: Tensor) -> Step:
    """Record a step on a batch shaped like `example`; replaying it costs one launch and waits for nothing."""
    batch = example.clone()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(steps.generator)
    for optimiser in steps.optimisers:
        optimiser.zero_grad(set_to_none=True)  # gradients are then made inside the graph, in its own memory
    # Inside a stream's context: one that fails would leave the process on the stream of the capture.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        loss, count = steps.step(batch)

    def replay(given: Tensor) -> tuple[Tensor, Tensor]:
        batch.copy_(given)
        graph.replay()
        return loss.clone(), count.clone()

    return replay
