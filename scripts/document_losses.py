"""Write docs/losses.md from the docstrings, the configs, the contract and the benchmark: no arguments.

A test compares the page with what this script makes, so that it cannot drift.
"""

import inspect
import re
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from raremask.losses import check_loss
from raremask.losses.compound import Sum
from raremask.losses.contract import Report

ROOT = Path(__file__).parents[1]

#: Columns of the contract's table, and what the clauses below each are called.
CLAUSES = {
    "scalar, scale, slope": "scalar|scale|slope",
    "keeps nothing": "empty state_dict|deep copy",
    "order, layout, bool": "batch order|not contiguous|channels_last|boolean mask",
    "odd sizes, one image": "one image of",
    "finite": ".* mask, ",
    "float types": "float32|float16|bfloat16",
    "empty masks teach": "empty masks teach",
    "one graph": "torch.compile",
}


def page() -> str:
    """Return the whole page."""
    configs = {path.stem: path for path in sorted((ROOT / "conf" / "loss").glob("*.yaml"))}
    losses = {name: made(path) for name, path in configs.items()}
    costs = dict(re.findall(r"^\| (\w+) \| ([\d.]+)", (ROOT / "docs" / "bench_losses.md").read_text(), re.MULTILINE))
    classes = {type(module) for loss in losses.values() for module in loss.modules()} - {nn.ModuleDict}
    lines = [
        "# The losses",
        "",
        "*Made by `scripts/document_losses.py` from configs, docstrings, contract and benchmark: do not edit.*",
        "",
        "Every name is a choice of `loss=`. *Empty*: what an empty mask of 100 x 100 pixels is worth if nothing is",
        "painted -> if a square of 1 % is; where the two are the same, a batch without foreground teaches nothing.",
        "*Cost*: forward and backward on the CPU beside BCE's, from [the benchmark](bench_losses.md); clDice's with 3",
        "erosions.",
        "",
        "| `loss=` | what it is | made of | empty | cost |",
        "|---|---|---|---|---|",
    ]
    for name, path in configs.items():
        said = path.read_text().splitlines()[0].removeprefix("# ")
        parts = " + ".join(made_of(OmegaConf.load(path)))
        lines.append(f"| `{name}` | {said} | {parts} | {worth(losses[name])} | {costs.get(name, 'not measured')} |")
    lines += [
        "",
        "## The contract",
        "",
        "What `raremask.losses.check_loss` finds on the CPU: how many of its clauses hold.",
        "",
    ]
    lines += [f"| loss | {' | '.join(CLAUSES)} |", f"|---|{'---|' * len(CLAUSES)}"]
    lines += [f"| `{name}` | {' | '.join(cells(check_loss(loss)))} |" for name, loss in losses.items()]
    for kind in sorted(classes, key=lambda kind: kind.__name__):
        parameters = inspect.signature(kind).parameters if "__init__" in vars(kind) else {}
        arguments = ", ".join(map(str, parameters.values()))
        lines += ["", f"## {kind.__name__}", "", f"    {kind.__module__}.{kind.__name__}({arguments})", ""]
        lines += [markdown(inspect.getdoc(kind))]
    return "\n".join(lines) + "\n"


def made(path: Path) -> nn.Module:
    """Return a loss with 3 erosions where their number is `auto`, as the benchmark has it, and 10 for any other."""
    text = path.read_text().replace("iterations: auto", "iterations: 3").replace(": auto", ": 10.0")
    return instantiate(OmegaConf.create(text))


def cells(report: Report) -> list[str]:
    """Return a cell for each column of the contract's table."""
    row = []
    for pattern in CLAUSES.values():
        verdicts = [clause.verdict for clause in report.clauses if re.match(pattern, clause.name)]
        if "broken" in verdicts:
            row.append("**broken**")
        elif len(verdicts) == 1:
            row.append("yes" if verdicts == ["ok"] else "**no**")
        else:
            row.append(f"{verdicts.count('ok')} of {len(verdicts)}")
    return row


def worth(loss: nn.Module) -> str:
    """Say what an empty mask is worth, with nothing and with a square painted, surely."""
    painted = torch.full((1, 1, 100, 100), -20.0)
    nothing = loss(painted, torch.zeros_like(painted)).item()
    painted[..., 20:30, 20:30] = 20
    return f"{nothing:.2f} -> {loss(painted, torch.zeros_like(painted)).item():.2f}"


def made_of(config: DictConfig) -> list[str]:
    """Name the classes that a config makes, each linked to its section."""
    kind = config._target_.split(".")[-1]
    if kind == Sum.__name__:
        return [f"{config.weights[name]:g} {made_of(term)[0]}" for name, term in config.terms.items()]
    return [f"[{kind}](#{kind.lower()})"]


def markdown(docstring: str) -> str:
    """Turn a docstring of ours into Markdown."""
    text, _, examples = docstring.partition("\n>>> ")
    text = re.sub(r"\.\. math:: (.*?)\n\n", lambda found: formula(found[1]), text, flags=re.DOTALL)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"^(Note|Args|Raises|Source):\n", r"**\1**\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^    (\w+): ", r"- `\1`: ", text, flags=re.MULTILINE)
    text = re.sub(r"^ {4,}", "  ", text, flags=re.MULTILINE)
    return f"{text.strip()}\n\n```python\n>>> {examples.strip()}\n```" if examples else text.strip()


def formula(text: str) -> str:
    """Set a formula that may go over several lines."""
    return "```math\n" + " ".join(text.split()) + "\n```\n\n"


if __name__ == "__main__":
    (ROOT / "docs" / "losses.md").write_text(page())
