import torch

from avalanche_cetl.common.processes import Processes


def test_one_process_alone_meets_itself():
    alone = Processes(None)
    x = torch.ones(2)
    alone.add([x])
    assert alone.alone and (alone.rank, alone.size) == (0, 1)
    assert alone.meet("value") == ["value"]
    assert torch.equal(x, torch.ones(2)) and alone.rows(x, [2]) is x
    alone.agree(3)


def test_processes_exchange_values_sums_rows_and_problems(two_processes):
    both = two_processes(
        """
        from avalanche_cetl.common.processes import OtherProcessError, Processes, StartAgainError

        ranks = Processes(world)
        assert (ranks.rank, ranks.size, ranks.alone) == (rank, 2, False)
        assert ranks.meet(10 + rank) == [10, 11]
        ranks.agree("same")
        try:
            ranks.agree(rank)
            raise AssertionError("they differ")
        except StartAgainError:
            pass
        x = torch.full((3, 2), float(rank + 1)).T
        ranks.add([x])
        assert torch.equal(x, torch.full((2, 3), 3.0))
        rows = ranks.rows(torch.full((1 + rank, 2), float(rank)), [1, 2])
        assert torch.equal(rows[:, 0], torch.tensor([0.0, 1.0, 1.0]))
        if rank == 0:
            ranks.report(KeyError("lost"))
        else:
            try:
                ranks.meet()
                raise AssertionError("the other failed")
            except OtherProcessError as problem:
                assert "process 0 failed: KeyError: 'lost'" in str(problem)
        """
    )
    both.succeed()
