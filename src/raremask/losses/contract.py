"""The contract of a loss, as one check that anyone can run on a loss of their own."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

HEIGHT, WIDTH = 17, 23


@dataclass(frozen=True)
class Clause:
    """One clause of the contract and what came out.

    Args:
        name: What was tried.
        verdict: `ok`, `broken`, or `note` for what the contract allows and a user should know.
        finding: What was seen, where it is not `ok`.
    """

    name: str
    verdict: str
    finding: str = ""


@dataclass
class Report:
    """All clauses; printed, a table.

    Args:
        loss: Name of what was checked.
        clauses: In the order in which they were tried.
    """

    loss: str
    clauses: list[Clause] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """One sentence for each clause that is broken."""
        return [f"{clause.name}: {clause.finding}" for clause in self.clauses if clause.verdict == "broken"]

    @property
    def notes(self) -> list[str]:
        """One sentence for each thing to know."""
        return [f"{clause.name}: {clause.finding}" for clause in self.clauses if clause.verdict == "note"]

    def __str__(self) -> str:
        width = max(len(clause.name) for clause in self.clauses)
        lines = [f"{clause.name:{width}}  {clause.verdict:6}  {clause.finding}".rstrip() for clause in self.clauses]
        outcome = f"breaks {len(self.broken)} of the clauses of" if self.broken else "keeps"
        return "\n".join([*lines, f"{self.loss} {outcome} the contract"])


def check_loss(loss: nn.Module, device: str = "cpu") -> Report:
    """Try the whole contract of :mod:`raremask.losses` on one loss.

    Args:
        loss: Called as ``loss(logits, mask)`` with two tensors of shape `(B, 1, H, W)`.
        device: Where to try it. On a GPU one clause more: no step may wait for the host.

    Returns:
        A report: print it, or look whether `broken` is empty. A few seconds, most of them for `torch.compile`.

    Raises:
        TypeError: If it is no module.

    >>> check_loss(nn.BCEWithLogitsLoss(reduction="none")).broken
    ['scalar: the value has shape (2, 1, 17, 23); it must be a scalar']
    """
    if not isinstance(loss, nn.Module):
        raise TypeError(f"a loss is an nn.Module that is called with logits and mask; got {type(loss).__name__}")
    check = _Check(Report(type(loss).__name__), loss.to(device), device)
    if check.scalar():
        with check.trying("empty state_dict, deep copy"):
            check.keeps_nothing()
        with check.trying("scale"):
            check.scale()
        with check.trying("slope"):
            check.slope()
        check.layouts()
        check.finite()
        check.float_types()
        with check.trying("empty masks teach"):
            check.empty_masks()
        if device.startswith("cuda"):
            check.never_waits()
        check.compiles()
    return check.report


class _Check:
    """The clauses, on an ordinary mask and random logits."""

    def __init__(self, report: Report, loss: nn.Module, device: str):
        self.report, self.loss = report, loss
        self.mask = torch.zeros(2, 1, HEIGHT, WIDTH, device=device)
        self.mask[:, :, 4:9, 5:15] = 1
        self.logits = torch.randn(self.mask.shape, generator=torch.Generator().manual_seed(0)).to(device)

    def note(self, name: str, holds: bool, finding: str, otherwise: str = "broken") -> None:
        self.report.clauses.append(Clause(name, "ok") if holds else Clause(name, otherwise, finding))

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """Whatever a foreign loss raises is a finding."""
        try:
            yield
        except Exception as error:
            self.note(name, False, f"it raises {type(error).__name__}: {(str(error) or '?').splitlines()[0]}")

    def same(self, name: str, logits: Tensor, mask: Tensor) -> None:
        """Another way to hand over the same batch: the same value, and slopes of the same size."""
        with self.trying(name):
            (value, slopes), (expected, usual) = (
                _gradient(self.loss, *batch) for batch in ((logits, mask), (self.logits, self.mask))
            )
            finding = f"the value is {value:.6g} instead of {expected:.6g}, or the gradient is another"
            same = torch.allclose(slopes.norm(), usual.norm(), rtol=1e-3)
            self.note(name, same and torch.allclose(value.float(), expected.float(), rtol=1e-4), finding)

    def scalar(self) -> bool:
        with self.trying("scalar"):
            shape = self.loss(self.logits, self.mask).shape
            self.note("scalar", shape == (), f"the value has shape {tuple(shape)}; it must be a scalar")
            return shape == ()
        return False

    def keeps_nothing(self) -> None:
        stored = list(self.loss.state_dict())
        self.note("empty state_dict", not stored, f"it holds {stored}; register buffers as not persistent")
        again = copy.deepcopy(self.loss)(self.logits, self.mask)
        self.note("deep copy", torch.equal(again, self.loss(self.logits, self.mask)), "it gives another value")

    def scale(self) -> None:
        sure = 40 * (self.mask - 0.5)
        perfect, middle, worst = (self.loss(logits, self.mask) for logits in (sure, self.logits, -sure))
        finding = f"perfect {perfect:.4g} < random {middle:.4g} < worst {worst:.4g} does not hold"
        self.note("scale", bool(perfect < middle < worst), finding)

    def slope(self) -> None:
        value, gradient = _gradient(self.loss, self.logits, self.mask)
        lower = self.loss(self.logits - 1e-2 * gradient / gradient.norm().clamp(min=1e-12), self.mask)
        self.note("slope", bool(lower < value), "a small step against the gradient does not lower the value")

    def layouts(self) -> None:
        logits, mask = self.logits, self.mask
        self.same("batch order", logits.flip(0), mask.flip(0))
        self.same("not contiguous", _strided(logits), _strided(mask))
        self.same("channels_last", *(it.contiguous(memory_format=torch.channels_last) for it in (logits, mask)))
        self.same("boolean mask", logits, mask.bool())
        for height, width in ((1, 9), (5, 1), (33, 31)):
            small = torch.zeros(1, 1, height, width, device=mask.device)
            small[..., 0, :] = 1
            self.is_finite(f"one image of {height} x {width}", torch.ones_like(small), small)

    def finite(self) -> None:
        empty, pixel, line = (torch.zeros_like(self.mask) for _ in range(3))
        pixel[0, 0, 3, 3], line[0, 0, :, 5] = 1, 1
        beside = self.mask.clone()
        beside[0] = 0
        masks = {"all-empty": empty, "full": 1 - empty, "one-pixel": pixel, "one-line": line, "half-empty": beside}
        for name, mask in ({"ordinary": self.mask} | masks).items():
            for scale in (1.0, 1e4):
                self.is_finite(f"{name} mask, logits of {scale:g}", self.logits * scale, mask)
            self.is_finite(f"{name} mask, surely right", 2e4 * (mask - 0.5), mask)

    def is_finite(self, name: str, logits: Tensor, mask: Tensor) -> None:
        with self.trying(name):
            value, gradient = _gradient(self.loss, logits, mask)
            finding = "the gradient is not finite" if value.isfinite() else f"the value is {value.item()}"
            self.note(name, bool(value.isfinite() and gradient.isfinite().all()), finding)

    def float_types(self) -> None:
        mask = torch.zeros(1, 1, 512, 512, device=self.mask.device)  # its area does not fit into float16
        mask[..., 100:400, 100:400] = 1
        low = torch.ones_like(mask)  # exact in every float type; painted too large, so that all sums are
        with self.trying("float32"):
            expected, usual = _gradient(self.loss, low, mask, scale=2.0**12)
            self.note("float32", expected.dtype == torch.float32, f"float32 logits give {expected.dtype}")
        for dtype in (torch.float16, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            with self.trying(name):
                value, gradient = _gradient(self.loss, low.to(dtype), mask, scale=2.0**12)
                difference = (value.float() - expected).abs().item()
                finding = f"512 x 512 logits change the value by {difference:.3g}, or the gradient"
                # loss scaling, as in training: the slopes of single pixels are too small for float16
                same = torch.allclose(gradient.float(), usual, rtol=0.05, atol=0.05 * usual.abs().max().item())
                holds = difference <= 1e-3 * expected.abs().clamp(min=1) and same
                self.note(name, bool(holds), finding)

    def empty_masks(self) -> None:
        """Whether false positives on empty masks cost, and whether the loss says so."""
        claims = getattr(self.loss, "learns_from_empty", True)
        spots = 8 * self.mask - 4
        value, gradient = _gradient(self.loss, spots, torch.zeros_like(self.mask))
        rise = value - self.loss(torch.full_like(spots, -4.0), torch.zeros_like(self.mask))
        learns = bool(rise > 0.005) and bool((gradient[self.mask != 0] > 0).any())
        if learns == claims:
            finding = "a false positive costs nothing: a batch without foreground does not teach"
            self.note("empty masks teach", claims, finding, "note")
        elif claims:
            finding = "a false positive costs nothing, and the loss does not say so: set learns_from_empty = False"
            self.note("empty masks teach", False, finding)
        else:
            self.note("empty masks teach", False, "a little, though learns_from_empty is False", "note")

    def never_waits(self) -> None:
        logits = self.logits.clone().requires_grad_()
        torch.cuda.synchronize()
        try:
            with _quiet():  # PyTorch warns that this mode is a prototype
                torch.cuda.set_sync_debug_mode("error")
            self.loss(logits, self.mask).backward()
            self.note("never waits for the host", True, "")
        except RuntimeError as error:
            self.note("never waits for the host", False, str(error).splitlines()[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def compiles(self) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(self.loss, fullgraph=True, backend="aot_eager")
        with _quiet():
            try:
                value, gradient = _gradient(compiled, self.logits, self.mask)
            except Exception as error:  # dynamo's errors have many types, and none is the loss's fault
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                self.note("torch.compile in one graph", False, reason.strip(), "note")
                return
        expected, slope = _gradient(self.loss, self.logits, self.mask)
        same = torch.allclose(value, expected, rtol=1e-4) and torch.allclose(gradient, slope, rtol=1e-3, atol=1e-6)
        self.note("torch.compile in one graph", same, "compiled, it gives another value or gradient")


def _gradient(loss: Callable, logits: Tensor, mask: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Value and gradient times `scale`; not a number where the loss does not depend on the logits at all."""
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, mask)
    if value.requires_grad:
        (scale * value).backward()
    return value.detach(), torch.full_like(logits, float("nan")) if logits.grad is None else logits.grad


def _strided(tensor: Tensor) -> Tensor:
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch has to say about itself
        yield
