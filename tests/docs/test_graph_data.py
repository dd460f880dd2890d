"""The code and the configuration in docs/graph-data.md work together as printed."""

import re
from pathlib import Path

from core.config.config_load import load_config_from_yaml
from projects.twhin.config import TwhinConfig
from projects.twhin.data.edges import EdgeDataset, check_batching
from projects.twhin.model.relations import build_relations
from projects.twhin.tools.generate import RELATIONS
from tests.docs.test_own_project import run
from tests.support.root import ROOT

PAGE = (ROOT / "docs/graph-data.md").read_text()


def test_the_table_of_the_page_is_written_and_read(tmp_path: Path, monkeypatch) -> None:
    code, config_yaml = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "make_graph.py").write_text(code)
    (tmp_path / "listening.yaml").write_text(config_yaml)
    run(tmp_path, "make_graph.py")
    monkeypatch.chdir(tmp_path)
    config = load_config_from_yaml(TwhinConfig, "listening.yaml")
    for path, data in config.data_sets().items():
        check_batching(data, path, world_size=2)
        dataset = EdgeDataset.open(data, build_relations(config.model), path)
        num_edges = sum(int(positioned.batch.weights.sum()) for positioned in dataset.reader(0, 1).evaluate())
        assert num_edges == {"train_data": 20_000, "validation_data": 1_000}[path]


def test_the_page_describes_the_generated_relations() -> None:
    rows = re.findall(r"\| (\d) \| `(\w+)` \| (\d+)% \| ([\d, ]+)% \|", PAGE)
    described = {name: (int(share), [int(kind) for kind in kinds.split(", ")]) for _, name, share, kinds in rows}
    assert described == {
        name: (round(100 * taste.share), [round(100 * kind) for kind in taste.kinds])
        for name, taste in RELATIONS.items()
    }
    assert [int(number) for number, *_ in rows] == list(range(len(RELATIONS)))
