"""Draw images/architecture.svg: `python notebooks/architecture.py`.

Boxes have a light fill and text outside them is grey, so that light and dark pages can both show it.
"""

from dataclasses import dataclass
from pathlib import Path

TARGET = Path(__file__).parent / "images" / "architecture.svg"
WIDTH, HEIGHT = 920, 640
GREY, INK = "#7d8590", "#1f2328"
COLORS = {"face": "#dbe9f9", "flow": "#fdeccb", "training": "#e3f1dc", "solver": "#ecdff5"}


@dataclass(frozen=True)
class Box:
    """A module in the picture: its place, its name, and lines on what it does."""

    x: int
    y: int
    width: int
    height: int
    kind: str
    name: str
    lines: tuple[str, ...]


BOXES = (
    Box(20, 36, 160, 74, "face", "cnf.flow.distribution", ("a flow as a PyTorch", "distribution")),
    Box(
        200,
        36,
        160,
        74,
        "face",
        "cnf.variational",
        ("a VAE\u2019s posterior", "q(z | x)"),
    ),
    Box(
        380,
        36,
        160,
        74,
        "face",
        "cnf.diagnostics",
        ("cnf.check: pass, warn", "or fail, with numbers"),
    ),
    Box(560, 36, 160, 74, "face", "cnf.tables.estimators", ("CNFDensity, for", "scikit-learn")),
    Box(740, 36, 160, 74, "face", "cnf.scripts", ("cnf train, evaluate,", "sample, check, \u2026")),
    Box(20, 176, 130, 96, "flow", "cnf.flow", ("z ~ base", "t = 0")),
    Box(210, 176, 150, 96, "flow", "cnf.layers.cnf", ("a CNF: an ODE and", "its solver settings")),
    Box(
        380,
        176,
        160,
        96,
        "flow",
        "cnf.layers",
        ("scales, bounds,", "angles, counts,", "categories"),
    ),
    Box(
        600, 176, 120, 96, "flow", "cnf.tables.schema", ("x: your rows,", "in your units", "t = 1")
    ),
    Box(
        20,
        350,
        160,
        110,
        "flow",
        "cnf.fields",
        ("dx/dt = f(t, x, c),", "with hand-written", "derivatives"),
    ),
    Box(
        200,
        350,
        160,
        110,
        "flow",
        "cnf.fields.divergence",
        ("tr \u2202f/\u2202x: closed form,", "tangents, or estimate", "with standard error"),
    ),
    Box(
        380,
        350,
        160,
        110,
        "flow",
        "cnf.layers.augmented",
        ("one state: x,", "log |det|, regularizers"),
    ),
    Box(
        760,
        176,
        140,
        96,
        "training",
        "cnf.training",
        ("one loop; an EMA of", "the weights; keeps", "the best"),
    ),
    Box(
        564,
        350,
        166,
        110,
        "training",
        "cnf.training.objectives",
        ("flow matching first,", "then maximum", "likelihood"),
    ),
    Box(
        744,
        350,
        156,
        110,
        "training",
        "cnf.training.recipes",
        ("complete settings", "for each size", "of data"),
    ),
    Box(
        20,
        546,
        206,
        74,
        "solver",
        "cnf.ode.tableaus",
        ("Runge-Kutta methods with", "checked order conditions"),
    ),
    Box(
        244,
        546,
        206,
        74,
        "solver",
        "cnf.ode.controllers",
        ("joint steps, or", "per-sample steps"),
    ),
    Box(468, 546, 206, 74, "solver", "cnf.ode.integrate", ("the loop, with a", "status per row")),
    Box(692, 546, 208, 74, "solver", "cnf.ode.gradients", ("backprop, checkpoint,", "backsolve")),
)
BANDS = (
    (20, 14, "interfaces"),
    (20, 150, "cnf.Flow = base + layers"),
    (760, 150, "cnf.fit"),
    (20, 324, "inside a CNF layer"),
    (20, 520, "cnf.ode.solve: any system of tensors"),
)


def text(x: float, y: float, words: str, size: int, color: str, style: str = "") -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}"{style}>{words}</text>'


def drawn(box: Box) -> list[str]:
    middle = box.x + box.width / 2
    centred = ' text-anchor="middle"'
    top = box.y + (box.height - 18 * len(box.lines) - 20) / 2 + 15
    return [
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="8" '
        f'fill="{COLORS[box.kind]}" stroke="{GREY}"/>',
        text(
            middle, top, box.name, 11, INK, centred + ' font-family="monospace" font-weight="600"'
        ),
        *(
            text(middle, top + 20 + 18 * i, line, 13, INK, centred)
            for i, line in enumerate(box.lines)
        ),
    ]


def arrow(x0: int, y0: int, x1: int, y1: int) -> str:
    return (
        f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{GREY}" stroke-width="1.6" '
        'marker-end="url(#tip)"/>'
    )


def picture() -> str:
    """Return the whole drawing as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" role="img">',
        "<title>How the modules of cnf fit together</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>',
    ]
    parts += [text(x, y + 14, words, 14, GREY, ' font-weight="600"') for x, y, words in BANDS]
    for box in BOXES:
        parts += drawn(box)
    parts += [
        arrow(152, 206, 208, 206),  # sampling: from the base to the rows
        arrow(362, 206, 378, 206),
        arrow(542, 206, 598, 206),
        arrow(598, 246, 542, 246),  # log p: from the rows to the base
        arrow(378, 246, 362, 246),
        arrow(208, 246, 152, 246),
        text(180, 198, "sample", 12, GREY, ' text-anchor="middle"'),
        text(570, 198, "sample", 12, GREY, ' text-anchor="middle"'),
        text(180, 264, "log p", 12, GREY, ' text-anchor="middle"'),
        text(570, 264, "log p", 12, GREY, ' text-anchor="middle"'),
        arrow(100, 112, 100, 144),
        arrow(280, 112, 280, 144),
        arrow(460, 112, 460, 144),
        arrow(640, 112, 748, 152),
        arrow(820, 112, 820, 144),
        arrow(285, 274, 285, 318),
        arrow(182, 405, 198, 405),
        arrow(362, 405, 378, 405),
        arrow(460, 462, 460, 514),
        arrow(690, 348, 790, 274),
        arrow(830, 348, 830, 274),
        arrow(758, 224, 722, 224),
    ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
