"""Kernels exchanged under a model's modules: the same functions, gradients, weights and names."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from pipelines.shared import kernels
from pipelines.shared.kernels import OneDNNConv1D, OneDNNLinear, onednn_is_faster, with_fast_kernels
from pipelines.shared.logprobs import Sequences, completion_logprobs, spent_logprobs

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN"
)


@pytest.fixture
def preferred(monkeypatch):
    """As on a machine where oneDNN is faster, for products of any size."""
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(kernels, "SMALL", 1)


@pytest.fixture
def calls(monkeypatch):
    """The shapes that went through oneDNN."""
    seen, plain = [], kernels.onednn

    def counted(x, weight, *args, **kwargs):
        seen.append((*x.shape, weight.shape[0]))
        return plain(x, weight, *args, **kwargs)

    monkeypatch.setattr(kernels, "onednn", counted)
    return seen


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **off))
    for name, weight in model.named_parameters():  # a bias of 0 would hide one that is left out
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    return model


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, intermediate_size=48, vocab_size=50, max_position_embeddings=16)
    )


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24)])
@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d"])
def test_a_layer_and_its_gradients_are_torchs(preferred, calls, kind, shape):
    torch.manual_seed(0)
    plain = Conv1D(40, 24) if kind == "conv1d" else torch.nn.Linear(24, 40, bias=kind == "linear")
    for weight in plain.parameters():
        torch.nn.init.normal_(weight)
    quick = with_fast_kernels(torch.nn.Sequential(copy.deepcopy(plain)))[0]
    assert isinstance(quick, OneDNNConv1D | OneDNNLinear) and isinstance(quick, type(plain))
    x, towards = torch.randn(shape), torch.randn(*shape[:-1], 40)
    results = []
    for layer in (plain, quick):
        given = x.clone().requires_grad_()
        made = layer(given)
        (made * towards).sum().backward()
        results.append([made, given.grad, *(weight.grad for weight in layer.parameters())])
    assert len(calls) == 2  # forward, and the gradient by x
    for own, other in zip(*results, strict=True):
        assert own.shape == other.shape and other.is_contiguous()
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_a_result_can_be_changed_in_place(preferred):
    """As some adapters do with their base layer's."""
    layer = with_fast_kernels(torch.nn.Sequential(torch.nn.Linear(4, 6)))
    for shape in ((4,), (3, 4), (2, 3, 4)):
        x, rows = torch.randn(shape), torch.Size(shape[:-1])
        result = layer(x)
        result += 1
        assert result.shape == (*shape[:-1], 6)
        layer.zero_grad()
        result.sum().backward()
        torch.testing.assert_close(layer[0].bias.grad, torch.full((6,), float(rows.numel())))


def test_a_weight_may_change_where_only_its_own_gradient_is_wanted(preferred):
    layer = with_fast_kernels(torch.nn.Sequential(torch.nn.Linear(4, 6)))
    x = torch.randn(3, 4)
    made = layer(x).sum()
    layer[0].weight.data.add_(1)
    with torch.no_grad():
        layer[0].weight.add_(1)
    made.backward()
    torch.testing.assert_close(layer[0].weight.grad, x.sum(0).expand(6, -1))
    held = layer(x.requires_grad_()).sum()
    with torch.no_grad():
        layer[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        held.backward()


def test_what_is_frozen_gets_no_gradient(preferred, calls):
    layer = with_fast_kernels(torch.nn.Sequential(torch.nn.Linear(24, 40).requires_grad_(False)))
    x = torch.randn(3, 24, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer[0].weight.sum(0).expand(3, -1), atol=1e-5, rtol=1e-5)
    assert layer[0].weight.grad is None and layer[0].bias.grad is None
    given = x * 1.0
    made = layer(given).sum()
    given.add_(1)  # nobody keeps it for a gradient that is not wanted
    made.backward()
    calls.clear()
    layer[0].requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert calls == [(3, 24, 40)] and layer[0].weight.grad is not None  # nobody asked for x's


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_models_logprobs_and_gradients_stay(preferred, calls, make):
    plain, quick = make(), with_fast_kernels(make())
    ids = torch.arange(2 * 12).view(2, 12) + 1
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    mask[1, -3:] = 0
    sequences = Sequences(ids, mask, prompt_width=4)
    found = []
    for model in (plain, quick):
        logprobs = completion_logprobs(model, sequences)
        (logprobs**2).sum().backward()
        with torch.no_grad():
            alone = completion_logprobs(model, sequences)
        torch.testing.assert_close(alone, logprobs, atol=1e-5, rtol=1e-5)
        found.append((logprobs, {name: w.grad for name, w in model.named_parameters()}))
    assert calls
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], atol=1e-4, rtol=1e-4, msg=name)


def test_without_gradients_the_gelu_is_part_of_a_product(preferred, calls, monkeypatch):
    plain = gpt2()
    quick = with_fast_kernels(copy.deepcopy(plain))
    x = torch.randn(2, 3, 32)
    monkeypatch.setattr(torch.nn.GELU, "forward", lambda *args: pytest.fail("computed alone"))
    with torch.no_grad():
        own, other = plain.transformer.h[0].mlp(x), quick.transformer.h[0].mlp(x)
    torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    assert calls == [(2, 3, 32, 128), (2, 3, 128, 32)]


def test_hooks_inside_an_mlp_are_called(preferred):
    quick, seen = with_fast_kernels(gpt2()), []
    mlp = quick.transformer.h[0].mlp
    for module in (mlp.c_fc, mlp.act):
        hook = module.register_forward_hook(lambda module, given, made: seen.append(module))
        with torch.no_grad():
            mlp(torch.randn(2, 3, 32))
        assert seen == [module]
        hook.remove()
        seen.clear()


def test_an_mlp_of_another_activation_keeps_it(preferred):
    plain = gpt2()
    config = copy.deepcopy(plain.config)
    config.activation_function = "relu"
    plain = GPT2LMHeadModel(config).eval()
    quick = with_fast_kernels(copy.deepcopy(plain))
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, quick(ids).logits, atol=1e-5, rtol=1e-5)


def test_logits_of_a_product_are_overwritten(preferred):
    """Nobody reads them again, as of torch's own product."""
    head = with_fast_kernels(torch.nn.Sequential(torch.nn.Linear(8, 20, bias=False)))
    logits = head(torch.randn(4, 8))
    assert type(logits.grad_fn).__name__ == "OneDNNProductBackward"
    before = logits.detach().clone()
    found = spent_logprobs(logits, torch.arange(4))
    torch.testing.assert_close(found, before.log_softmax(-1)[range(4), range(4)])
    assert not torch.equal(before, logits.detach())


def test_small_ones_other_types_and_autocast_go_to_torch(preferred, calls, monkeypatch):
    layer = with_fast_kernels(torch.nn.Sequential(torch.nn.Linear(8, 8), Conv1D(8, 8)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(4, 8)).dtype == torch.bfloat16
    copy.deepcopy(layer).double()(torch.randn(4, 8).double())
    assert not calls
    monkeypatch.setattr(kernels, "SMALL", 4 * 8 * 8)
    layer(torch.randn(3, 8))
    assert not calls
    layer(torch.randn(4, 8))
    assert len(calls) == 2
    layer(torch.randn(0, 8))  # and of no rows


def test_what_is_saved_is_what_it_was(preferred, tmp_path):
    plain = gpt2()
    quick = with_fast_kernels(copy.deepcopy(plain))
    assert quick.state_dict().keys() == plain.state_dict().keys()
    quick.save_pretrained(tmp_path)
    assert quick.config.activation_function == "gelu_new"
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert not any(isinstance(each, OneDNNConv1D) for each in again.modules())
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_an_adapter_on_top_is_trained(preferred, calls):
    plain = gpt2()
    config = LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True, init_lora_weights=False)
    models = []
    for model in (plain, with_fast_kernels(copy.deepcopy(plain))):
        torch.manual_seed(1)
        models.append(get_peft_model(model, config))
    ids = torch.arange(12).view(2, 6)
    for model in models:
        (model(ids).logits ** 2).mean().backward()
    gradients = [
        {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
        for model in models
    ]
    assert gradients[0] and all("lora_" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)
    assert calls
    with torch.no_grad():  # the adapter is not passed over
        torch.testing.assert_close(*(m(ids).logits for m in models), atol=1e-4, rtol=1e-4)


def test_a_subclass_of_somebodys_is_left_alone(preferred):
    class Own(torch.nn.Linear):
        pass

    assert type(with_fast_kernels(torch.nn.Sequential(Own(2, 2)))[0]) is Own


def test_only_amds_processors_prefer_onednn(tmp_path, monkeypatch):
    amd, intel = tmp_path / "amd", tmp_path / "intel"
    amd.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    intel.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\n")
    assert onednn_is_faster(amd) == torch.backends.mkldnn.is_available()
    assert not onednn_is_faster(intel)
    assert not onednn_is_faster(tmp_path / "none")
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: False)
    model = with_fast_kernels(gpt2())
    assert type(model.lm_head) is torch.nn.Linear
    assert isinstance(model.transformer.h[0].mlp.act, torch.nn.GELU)
