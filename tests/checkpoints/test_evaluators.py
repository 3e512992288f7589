from saved_runs import make, seeded

from avalanche_cetl import load_checkpoint


def test_a_text_log_is_the_same_to_the_letter(benchmark, tmp_path):
    with (tmp_path / "whole.txt").open("w+") as log:
        whole = make(tmp_path / "a", log=log)
        seeded()
        whole.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    text = (tmp_path / "whole.txt").read_text()
    # The log of a run that was killed within round 3.
    (tmp_path / "cut.txt").write_text(text[: text.index("Epoch 2 ended")])
    with (tmp_path / "cut.txt").open("a+") as log:
        again = make(tmp_path / "b", log=log)
        load_checkpoint(again, tmp_path / "a" / "checkpoint-000002.safetensors")
        again.train(benchmark.train_stream, eval_streams=[benchmark.test_stream])
    assert (tmp_path / "cut.txt").read_text() == text
