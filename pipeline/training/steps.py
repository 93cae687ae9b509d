"""Training steps and, on a GPU, a CUDA graph that replays them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from models.core.recommender import Recommender

NO_CUDA_GRAPH = "SPECTRAN_NO_CUDA_GRAPH"  # environment variable; if set, no step is captured
Step = Callable[[Tensor], tuple[Tensor, Tensor]]  # a batch of sequences (B, L + 1) -> its loss and its number of targets
WARM_UP = 3  # steps before a capture, in which libraries choose kernels and the optimiser creates its state
PROOF = 2  # steps that are done both ways before a graph is used; the second depends on the first's update and on new draws
TOLERANCE = 1e-4  # relative, of a loss: above summation-order error, below different draws or a missed update


class Steps:
    """Trains a model batch by batch. On a GPU, a step is captured once as a CUDA graph and replayed: one launch, not hundreds.

    A graph is kept only if replaying it gives the same losses as ordinary steps from the same state and random numbers. If they
    differ, or the step cannot be captured, a line says why and every kernel is launched by itself.

    Example, the first epoch on a GPU with eight batches, WARM_UP = 3 and PROOF = 2:

    - Batches 1 to 3 are ordinary steps.
    - Before batch 4, the state (weights, moments, random states) is copied: A. Batches 4 and 5 are trained by ordinary steps;
      their losses are the expected ones, and the state after them is copied: B.
    - State A is restored. The step is captured, and batches 4 and 5 are trained by replaying the graph.
    - If both losses agree with the expected ones, the graph is kept. The state is that after batch 5 by replay, and batches 6 to
      8 and all later epochs are replayed.
    - Otherwise state B is restored, and batches 6 to 8 are ordinary steps: training continues as if there had been no attempt.

    Either way each batch is trained once, as far as weights and random numbers can tell.
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
        """generator: for the order of users, masks and negatives. precision: returns the autocast context of a step.

        batch_size: users per step. capture: captures a step on a batch of a fixed shape; None: never capture.
        """
        self.model = model
        self.optimisers = optimisers
        self.generator = generator
        self.precision = precision
        self.batch_size = batch_size
        self.capture = capture
        self.replayed: Step | None = None
        self.warm = 0

    def epoch(self, train: Tensor) -> tuple[Tensor, Tensor]:
        """Train on all users in random order, `passes_per_epoch` times; return loss and number of targets of every step.

        train: (U, L + 1) item ids, left-padded with N. Both results are (steps,) float64 on the CPU. Losses stay on the device
        until the epoch ends, because reading one would wait for the GPU.
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
        """Train on one batch (B, L + 1); return its loss and its number of targets.

        Each step has its own autocast context, because autocast keeps its copies of the weights as long as a context lasts.
        """
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
        """Train on `batches` both ways, as in the example of the class; return their losses and numbers of targets.

        Afterwards either `replayed` is the graph, or `capture` is None and the state is that of ordinary steps.
        """
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
            cause = error.__context__ or error  # the error at the end of a capture hides its cause
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
        """Restore the state after a failed capture. Raises UserError if that left torch's random generators unusable."""
        try:
            if self.generator.device.type == "cuda":  # a generator may still be marked as captured; a clone of its state is not
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
        """Return the weights and moments: everything that a step changes except random states."""
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
        """Restore a state in place, because a graph refers to memory addresses."""
        with torch.no_grad():
            for tensor, saved in zip(self._tensors(), state[0], strict=True):
                tensor.copy_(saved)
        set_random_states(self.generator, state[1])


def random_states(generator: torch.Generator) -> list[Tensor]:
    """Return the states of all generators that a step uses: the given one, torch's global one, and those of the GPUs."""
    gpu = torch.cuda.get_rng_state_all() if generator.device.type == "cuda" else []
    return [generator.get_state(), torch.get_rng_state(), *gpu]


def set_random_states(generator: torch.Generator, states: list[Tensor]) -> None:
    """Restore what `random_states` returned."""
    own, default, *gpu = states
    generator.set_state(own)
    torch.set_rng_state(default)
    if gpu:
        torch.cuda.set_rng_state_all(gpu)


def cuda_graph(steps: Steps, example: Tensor) -> Step:
    """Capture a step on a batch shaped like `example`; return a function that copies a batch in and replays the step.

    Raises RuntimeError if the step cannot be captured.
    """
    batch = example.clone()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(steps.generator)
    for optimiser in steps.optimisers:
        optimiser.zero_grad(set_to_none=True)  # gradients are then allocated inside the graph's own memory
    # In a stream context: otherwise a failed capture leaves the process on the stream of the capture.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        loss, count = steps.step(batch)

    def replay(given: Tensor) -> tuple[Tensor, Tensor]:
        batch.copy_(given)
        graph.replay()
        return loss.clone(), count.clone()

    return replay
