import torch

from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from tests.support.toy import rows_reader, toy_batch

CPU = torch.device("cpu")


def test_metric_names_are_those_of_an_evaluation(tmp_path):
    evaluation_set = EvaluationSet(rows_reader(tmp_path), lambda device: MultiTaskMetrics(["a", "b"], device))
    metrics = evaluation_set.make_metrics(CPU)
    batch = toy_batch(8)
    logits = torch.full_like(batch.labels, -0.3)
    metrics.update({"calibrated_logits": logits, "labels": batch.labels, "weights": batch.weights})
    assert list(evaluation_set.metric_names(CPU)) == list(metrics.compute())
    assert "mean/auroc" in evaluation_set.metric_names(CPU)
