"""Draws the pictures of docs/architecture.md as SVG files next to this script.

python docs/pictures/draw.py
"""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

FONT = "font-family='Helvetica, Arial, sans-serif'"
INK, GREY, LINE, PAPER = "#1f2933", "#52606d", "#7b8794", "#ffffff"
BLUE, GREEN, YELLOW, RED, VIOLET = "#dbeafe", "#dcfce7", "#fef3c7", "#fee2e2", "#ede9fe"


class Picture:
    """Collects the shapes of one SVG file."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
            f"height='{height}' role='img'>\n<title>{escape(title)}</title>\n"
            "<defs><marker id='tip' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' "
            f"orient='auto-start-reverse'><path d='M0 0 L10 5 L0 10 z' fill='{LINE}'/></marker></defs>\n"
            f"<rect width='{width}' height='{height}' rx='8' fill='{PAPER}'/>\n"
        )
        self._shapes: list[str] = []

    def text(self, x: float, y: float, words: str, size: int = 12, color: str = INK, **style: str) -> None:
        """Write a line of text. `style` holds further SVG attributes, with _ for -."""
        attributes = "".join(f" {name.replace('_', '-')}='{value}'" for name, value in style.items())
        self._shapes.append(
            f"<text x='{x}' y='{y}' {FONT} font-size='{size}' fill='{color}'{attributes}>{escape(words)}</text>"
        )

    def box(
        self, x: float, y: float, width: float, height: float, title: str, lines: Sequence[str] = (), fill: str = BLUE
    ) -> None:
        """Draw a box with a bold title and lines of text."""
        self._shapes.append(
            f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='6' fill='{fill}' stroke='{LINE}'/>"
        )
        self.text(x + 10, y + 19, title, 13, font_weight="bold")
        for number, line in enumerate(lines):
            self.text(x + 10, y + 36 + 15 * number, line, 11, GREY)

    def band(self, y: float, height: float, width: float, label: str, fill: str) -> None:
        """Draw a horizontal band across the picture, with a label at the left."""
        self._shapes.append(f"<rect x='20' y='{y}' width='{width}' height='{height}' rx='8' fill='{fill}'/>")
        self.text(34, y + 22, label, 13, GREY, font_weight="bold")

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw an arrow through points."""
        path = " L".join(f"{x} {y}" for x, y in points)
        self._shapes.append(
            f"<path d='M{path}' fill='none' stroke='{LINE}' stroke-width='1.6' marker-end='url(#tip)'/>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str = LINE, width: float = 1.6) -> None:
        """Draw a line without heads."""
        self._shapes.append(f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{color}' stroke-width='{width}'/>")

    def dot(self, x: float, y: float, radius: float, fill: str) -> None:
        """Draw a dot."""
        self._shapes.append(f"<circle cx='{x}' cy='{y}' r='{radius}' fill='{fill}' stroke='{LINE}'/>")

    def svg(self) -> str:
        """Return the file's content."""
        return self._head + "\n".join(self._shapes) + "\n</svg>\n"


# Rooms from left to right are in the order of tests/test_imports.py, lowest first.
FLOORS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (
        "4  projects: what is trained",
        VIOLET,
        [("projects/home/recap", "the Heavy Ranker"), ("projects/twhin", "graph embeddings")],
    ),
    (
        "3  core: how a model is trained",
        GREEN,
        [
            ("config/training", "and command_line"),
            ("autocast, losses", ""),
            ("metrics", "RCE, AUROC, ranks"),
            ("models", "dense, sharded"),
            ("run", "session, start, state"),
            ("checkpoints", "saver, best"),
            ("evaluation", "evaluator, follower"),
            ("loop", "trainer, step, feed"),
            ("custom_training_loop", "and debug_training_loop"),
            ("project", "Project, Job"),
        ],
    ),
    (
        "2  common: what any training program needs",
        BLUE,
        [
            ("process", "signals, exit, logs"),
            ("distributed", "world, consensus"),
            ("batch, device_copies", ""),
            ("numerics", "TF32, seeds"),
            ("wandb", "its configuration"),
            ("tracking", "metrics.jsonl, W&B"),
            ("checkpointing", "write, verify, keep"),
            ("reader", "files to batches"),
            ("files", "tables, embeddings"),
            ("optimizers, modules", "schedules, MaskNet"),
        ],
    ),
    (
        "1  core/config: the base of configuration",
        YELLOW,
        [("base_config", "strict pydantic"), ("yaml_document", "lines of keys"), ("config_load", "YAML and --set")],
    ),
    ("0  common: errors", RED, [("errors", "UserError, ConfigError")]),
]


def floors() -> Picture:
    """Draw the floors and rooms of the code."""
    per_row, width, height = 5, 176, 46
    rows = [-(-len(rooms) // per_row) for _, _, rooms in FLOORS]
    picture = Picture(1010, 52 + sum(46 + 54 * count for count in rows), "Floors and rooms")
    picture.text(
        20,
        32,
        "A module imports its own room, rooms before it, and lower floors. Projects never import each other.",
        13,
    )
    y = 48
    for (label, fill, rooms), count in zip(FLOORS, rows, strict=True):
        picture.band(y, 36 + 54 * count, 970, label, fill)
        for number, (name, words) in enumerate(rooms):
            row, column = divmod(number, per_row)
            picture.box(36 + column * 190, y + 34 + row * 54, width, height, name, [words] if words else [], PAPER)
        y += 46 + 54 * count
    picture.arrow((996, 66), (996, y - 20))
    return picture


def row() -> Picture:
    """Draw the path of a row from a file to a metric."""
    picture = Picture(1040, 572, "The path of a row from file to metric")
    picture.text(20, 30, "Reading (a thread per rank)", 13, GREY, font_weight="bold")
    picture.box(
        20,
        44,
        180,
        84,
        "Parquet files",
        ["row groups of ~8 MiB", "checked by their footers", "common/reader/files"],
        YELLOW,
    )
    picture.box(230, 44, 180, 84, "Row groups", ["decoded ahead by threads,", "values checked", "row_group_prefetcher"])
    picture.box(
        440, 44, 180, 84, "Order", ["(seed, epoch) deals rows", "to lanes; rank r reads", "lanes r, r+R, ...  order.py"]
    )
    picture.box(
        650,
        44,
        180,
        84,
        "Batch",
        ["rows become tensors:", "gather, then the project's", "make_batch  (reader.py)"],
        VIOLET,
    )
    picture.box(860, 44, 160, 84, "Prefetcher", ["holds prefetch_batches", "ready, each with its", "position"])
    for x in (200, 410, 620, 830):
        picture.arrow((x + 2, 86), (x + 28, 86))
    picture.text(20, 176, "Training (the main thread)", 13, GREY, font_weight="bold")
    picture.box(
        860, 190, 160, 84, "StepFeed", ["all ranks agree that all", "have a batch and none", "was asked to stop"], GREEN
    )
    picture.box(650, 190, 180, 84, "DeviceCopies", ["to CUDA on a stream of", "its own; nothing to do", "on a CPU"])
    picture.box(
        440, 190, 180, 84, "TrainStep", ["forward under autocast,", "loss, backward; DDP", "averages gradients"], GREEN
    )
    picture.box(
        230,
        190,
        180,
        84,
        "Optimizer",
        ["finite on all ranks: one", "update at the scheduled", "learning rate, else skipped"],
        GREEN,
    )
    picture.box(
        20, 190, 180, 84, "TrainWindow", ["sums of losses stay on", "the device until the", "next train log"], GREEN
    )
    picture.arrow((940, 128), (940, 188))
    for x in (860, 650, 440, 230):
        picture.arrow((x - 2, 232), (x - 28, 232))
    picture.text(230, 322, "Evaluating (at checkpoints, or in a follower)", 13, GREY, font_weight="bold")
    picture.box(
        440,
        336,
        180,
        84,
        "Evaluator",
        ["every row once, padded", "with rows of weight 0,", "within a time limit"],
        GREEN,
    )
    picture.box(
        230, 336, 180, 84, "Metrics", ["sums in float64, reduced", "over the ranks once", "core/metrics"], GREEN
    )
    picture.box(
        650,
        336,
        180,
        84,
        "Evaluation set",
        ["the same reader, in stored", "order; its name is the", "partition"],
        YELLOW,
    )
    picture.arrow((648, 378), (622, 378))
    picture.arrow((438, 378), (412, 378))
    picture.box(20, 336, 180, 84, "Measurement", ["step, mode, partition,", "metrics, timing"], BLUE)
    picture.arrow((228, 378), (202, 378))
    picture.arrow((110, 274), (110, 334))
    picture.text(230, 466, "Recording (rank 0)", 13, GREY, font_weight="bold")
    picture.box(20, 480, 180, 60, "Trackers", ["each in its own thread;", "a failure is one warning"])
    picture.box(230, 480, 180, 60, "metrics.jsonl", ["written immediately, durable", "before a checkpoint"], YELLOW)
    picture.box(440, 480, 180, 60, "Weights & Biases", ["if configured"], YELLOW)
    picture.box(650, 480, 180, 60, "Your tracker", ["Job.trackers"], VIOLET)
    picture.arrow((110, 420), (110, 478))
    picture.line(110, 540, 110, 556)
    picture.line(110, 556, 740, 556)
    for x in (320, 530, 740):
        picture.arrow((x, 556), (x, 542))
    return picture


def _steps(picture: Picture, y: float, first: int, last: int, x_of: dict[int, float], fill: str) -> None:
    """Draw steps as dots on a line."""
    picture.line(x_of[first] - 26, y, x_of[last] + 6, y)
    for step in range(first, last + 1):
        picture.dot(x_of[step], y, 10, fill)
        picture.text(x_of[step], y + 4, str(step), 11, INK, text_anchor="middle")


def life() -> Picture:
    """Draw the life of a run with a kill and a resume."""
    picture = Picture(1040, 520, "The life of a run, with a kill and a resume")
    x_of = {step: 250.0 + 70 * step for step in range(1, 11)}
    picture.text(20, 30, "First start", 13, GREY, font_weight="bold")
    picture.box(
        20,
        44,
        230,
        84,
        "Session",
        ["signals, watchdog, lost-rank", "report, lock on save_dir,", "then the first collective"],
    )
    _steps(picture, 86, 1, 7, x_of, GREEN)
    picture.box(x_of[4] - 62, 124, 124, 46, "checkpoint 4", ["saved by a thread"], YELLOW)
    picture.arrow((x_of[4], 97), (x_of[4], 122))
    picture.text(x_of[7] + 30, 80, "killed (SIGKILL, power, a host)", 12, "#b91c1c", font_weight="bold")
    picture.text(x_of[7] + 30, 97, "steps 5 to 7 are lost", 12, "#b91c1c")
    picture.line(x_of[7] + 12, 76, x_of[7] + 24, 96, "#b91c1c", 3)
    picture.line(x_of[7] + 24, 76, x_of[7] + 12, 96, "#b91c1c", 3)

    picture.text(20, 206, "The same command again", 13, GREY, font_weight="bold")
    picture.box(
        20,
        220,
        230,
        114,
        "Start: resume",
        [
            "find the newest complete checkpoint",
            "in save_dir, verify every file,",
            "compare the run's identity,",
            "restore model, optimizers, state,",
            "cut metrics.jsonl after step 4",
        ],
    )
    _steps(picture, 262, 5, 10, x_of, GREEN)
    picture.arrow((x_of[4], 170), (x_of[4], 262), (x_of[5] - 12, 262))
    picture.text(x_of[5] - 20, 238, "the same steps as an uninterrupted run, bit for bit", 12, GREY)
    picture.box(x_of[8] - 62, 300, 124, 46, "checkpoint 8", ["4 may be rotated"], YELLOW)
    picture.arrow((x_of[8], 273), (x_of[8], 298))
    picture.box(x_of[10] - 62, 300, 124, 46, "checkpoint 10", ["the end"], YELLOW)
    picture.arrow((x_of[10], 273), (x_of[10], 298))

    picture.text(20, 388, "A follower (--mode evaluate), optional", 13, GREY, font_weight="bold")
    picture.box(
        20, 402, 230, 84, "Follower", ["its own lock and metrics file;", "holds a checkpoint while it", "evaluates it"]
    )
    picture.line(270, 444, x_of[10] + 40, 444)
    for step in (4, 8, 10):
        picture.box(x_of[step] - 50, 424, 100, 40, f"evaluate {step}", [], GREEN)
    picture.arrow((x_of[8], 346), (x_of[8], 422))
    picture.arrow((x_of[10], 346), (x_of[10], 422))
    picture.arrow((x_of[4] - 30, 170), (x_of[4] - 30, 422))
    picture.text(
        20,
        508,
        "SIGTERM or Ctrl-C instead: all ranks end after the same step, save a checkpoint, and exit with 0.",
        12,
        GREY,
    )
    return picture


PICTURES = {"floors.svg": floors, "row.svg": row, "life.svg": life}


def main() -> None:
    """Write all pictures."""
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw().svg())


if __name__ == "__main__":
    main()
