import torch
from coupled_runs import coupled, strategy

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.training import ClassifyStage, CoupledStage, MergedStage, SourceStage


def test_the_losses_of_a_merged_stage_are_those_of_its_parts_in_their_order():
    merged = MergedStage((ClassifyStage(), CoupledStage(), SourceStage()))
    assert merged.names == ("L_c", "L_rt", "L_rs") and merged.label == "merged"


def test_parts_of_a_merged_stage_read_the_labelled_rows_or_those_beside():
    stages = (ClassifyStage(), CoupledStage())
    target, labelled = Batch([torch.zeros(3)]), Batch([torch.zeros(2)])
    found = list(MergedStage(stages).pieces({"labelled": labelled, "target": target}))
    assert found == [(stages[0], labelled), (stages[1], target)]
    assert list(MergedStage(stages).pieces({"target": target})) == [(stages[1], target)]


def test_a_merged_step_without_a_source_network_leaves_l_rs_out(transfer):
    run = strategy(coupled(source=False), variant="joint")
    run.train(transfer.train_stream)
    assert run.round_losses.keys() == {"L_c", "L_rt"}
