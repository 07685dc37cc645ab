"""The arithmetic behind `make bench`; nothing is timed against anybody here."""

import csv
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from timing import results
from timing.gate import Gate
from timing.gemms import Operand, Product, Recorder
from timing.results import Row, compared, ratio, write

from pipelines.shared.kernels import onednn

ROWS, WIDTH, OUT = 5, 8, 3


def test_recorded_products_of_a_linear_layer_forward_and_backward():
    layer, inputs = torch.nn.Linear(WIDTH, OUT), torch.randn(ROWS, WIDTH, requires_grad=True)
    with Recorder() as recorder:
        layer(inputs).sum().backward()
    one = 2 * ROWS * WIDTH * OUT
    assert recorder.forward.total() == 1  # with the bias: addmm
    assert recorder.backward.total() == 2  # to the inputs, to the weights
    assert recorder.flops == 3 * one
    assert recorder.products()["overlooked"] == {}
    [forward] = recorder.forward
    weight = forward.args[2]
    assert (weight.shape, weight.stride) == ((WIDTH, OUT), (1, WIDTH))  # a transposed view
    assert all(product.seconds(repeats=1, at_least=0) > 0 for product in recorder.counts)


def test_batched_in_place_and_out_variants_are_recorded():
    one, other = torch.randn(2, 4, 5), torch.randn(2, 5, 6)
    total = torch.zeros(4, 6)
    with Recorder() as recorder:
        one @ other
        total.addmm_(one[0], other[0], alpha=2.0)
        torch.mm(one[0], other[0], out=total)
        torch.baddbmm(torch.zeros(2, 4, 6), one, other)
        one @ other
    assert recorder.forward.total() == 5 and len(recorder.counts) == 4
    assert recorder.flops == 2 * 4 * 5 * 6 * (2 + 1 + 1 + 2 + 2)
    assert recorder.backward.total() == 0
    assert all(product.seconds(repeats=1, at_least=0) > 0 for product in recorder.counts)


@pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN"
)
def test_products_of_onednn_are_recorded_without_what_is_computed_with_them():
    x, weight = torch.randn(2, 3, 5), torch.randn(5, 7)
    with Recorder() as recorder:
        made = onednn(x, weight.t(), torch.zeros(7), gelu=True)
    assert recorder.forward.total() == 1 and not recorder.overlooked
    assert "gelu" not in next(iter(recorder.forward)).args
    assert recorder.flops == 2 * made.numel() * 5
    assert recorder.floor()["floor"] > 0


def test_what_may_hold_products_and_is_not_recorded_is_named():
    with Recorder() as recorder:
        torch.mv(torch.randn(3, 4), torch.randn(4))
    assert recorder.flops == 0 and recorder.overlooked == {"mv": 1}


@pytest.mark.parametrize("stride", [(5, 1), (1, 4), (0, 1), (10, 2)])
def test_an_operand_is_made_in_its_form(stride):
    tensor = Operand((4, 5), stride, torch.float32).make()
    assert tensor.shape == (4, 5) and tensor.stride() == stride


def test_flops_of_a_product():
    a, b = (Operand(shape, (1, 1), torch.float32) for shape in ((7, 11), (11, 13)))
    assert Product(torch.ops.aten.mm.default, (a, b), ()).flops == 2 * 7 * 11 * 13


def row(**changes) -> Row:
    arguments = {
        "what": "dpo",
        "model": "a",
        "threads": 2,
        "ours": [9.0, 2.0, 1.0],
        "peer": [3.0, 6.0, 7.0, 5.0],
        "peer_name": "somebody",
        "floor": [1.5, 1.0, 4.0],
        "versions": "torch 1; trl 2",
    }
    return compared(**{**arguments, **changes})


def test_medians_and_ratios():
    seconds = row()
    assert (seconds.ours, seconds.peer, seconds.unit) == (2.0, 5.5, "s")
    assert seconds.ratio == 2.75 and seconds.share_of_gemm_peak == 0.75
    speed = row(tokens=100)
    assert (speed.ours, speed.unit, speed.ratio) == (50.0, "tok/s", 2.75)
    assert ratio(2.0, 1.0, "s") == 0.5 and ratio(2.0, 1.0, "tok/s") == 2.0


def test_the_file_is_replaced_as_a_whole_and_keeps_other_comparisons(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write(path, [row(), row(what="ppo")])
    write(path, [row(ours=[4.0])])
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [(line["what"], line["ours"]) for line in read] == [("dpo", "4.0"), ("ppo", "2.0")]
    assert list(read[0])[:3] == ["what", "model", "ours"] and read[0]["versions"].count(";") == 1

    before = path.read_text()
    monkeypatch.setattr(results.csv.DictWriter, "writerows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(path, [row()])
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_each_processor_has_a_table_of_its_own(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    for processor, ours in (("one", [4.0]), ("other", [5.0]), ("one", [6.0])):
        monkeypatch.setattr(results, "cpu", lambda processor=processor: processor)
        write(path, [row(ours=ours)])
    tables = results.markdown(path).split("| other |")
    assert len(tables) == 2
    assert tables[0].startswith("| one |") and "| 6.0 s |" in tables[0]
    assert "| 4.0 s |" not in tables[0] and "| 5.0 s |" in tables[1]


class ScriptedLine:
    """Orders from a list; answers kept."""

    def __init__(self, *orders: str) -> None:
        self.orders, self.answers = list(orders), []

    def order(self) -> list[str]:
        return self.orders.pop(0).split()

    def answer(self, **values) -> None:
        self.answers.append(values)


def test_a_gate_lets_through_what_was_ordered_and_records_one_tick():
    line, recorder, rollout = ScriptedLine("record", "go 2", "floor", "go 1"), Recorder(), [0.0]
    gate = Gate(line, steps=2, recorder=recorder, counters=lambda: {"rollout": rollout[0]})
    gate.begin()
    for _ in range(4):  # two ticks: the recorded one, and the first of the next order
        torch.randn(2, 3) @ torch.randn(3, 4)
        rollout[0] += 1.5
        gate.end_step()
    ready, recorded = line.answers
    assert ready["ready"] and set(ready["versions"]) >= {"torch", "transformers"}
    assert recorded["forward"] == 2 and recorded["flops"] == 2 * 2 * 2 * 3 * 4
    assert len(recorded["seconds"]) == 1 and recorded["phases"] == [{"rollout": 3.0}]
    for _ in range(2):
        rollout[0] += 0.5
        gate.end_step()
    ordered, floor = line.answers[2:]
    assert [phase["rollout"] for phase in ordered["phases"]] == [3.0, 1.0]
    assert floor["floor"] > 0 and floor["peak"] > 0 and not line.orders
    assert recorder.forward.total() == 2  # nothing after the tick that was asked for


def test_a_loss_that_is_nan_on_both_sides_is_no_agreement(capsys):
    from speed import LOSS_STEPS, agree

    steps = [1.0] * LOSS_STEPS
    assert agree({"ours": steps, "trl": steps})
    assert not agree({"ours": [1.0] + [float("nan")] * (LOSS_STEPS - 1), "trl": steps})
    assert not agree({"ours": [*steps[:-1], 1.1], "trl": steps})
    capsys.readouterr()
