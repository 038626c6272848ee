"""Generated layers: what they look like, what they ship, how they bind."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import traceback
from collections import OrderedDict

import pytest
import torch
from example_models import Residual, image, seeded
from patience import PROMPT_S
from torch import nn

from odin.partitioner.chain import build_chain


def test_generated_source_is_straight_line_code_without_lookups():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))
    program = build_chain(model, (image(),)).program.layers[0]
    assert program.source == textwrap.dedent(
        """\
        def make(f0, w0, w1):
            def layer(values):
                (v0,) = values
                v1 = f0(v0, w0, w1, (0, 0), (1, 1), (1, 1), 1, 'relu', [], '')  # 0
                return (v1,)
            return layer
        """
    )
    assert program.functions == ("torch.ops.mkldnn._convolution_pointwise.default",)
    assert program.state_names == ("0.weight", "0.bias")


def test_pickle_holds_no_weights():
    chain = build_chain(seeded(Residual), (image(),))
    assert len(pickle.dumps(chain.program)) < 20_000
    chain = build_chain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm([64, 64])), (image(size=66),))
    assert len(pickle.dumps(chain.program)) < 5_000


def test_binding_takes_the_tensors_themselves_and_can_be_repeated():
    chain = build_chain(nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2)), (torch.tensor([1]),))
    program = chain.program.layers[0]
    values = (torch.tensor([2]),)
    other = {name: tensor + 1 for name, tensor in chain.state.items()}
    with torch.inference_mode():
        first = program.bind(chain.state)
        before = first(values)[0]
        assert not torch.equal(program.bind(other)(values)[0], before)
        assert torch.equal(first(values)[0], before)
        chain.state["1.bias"].add_(1)
        assert torch.equal(first(values)[0], before + 1)
        chain.state["0.weight"].zero_()
        assert torch.equal(first(values)[0][0], chain.state["1.bias"])


def test_a_missing_weight_is_named():
    chain = build_chain(seeded(Residual), (image(),))
    with pytest.raises(ValueError, match=r"layer 'conv1' needs 'conv1.weight'"):
        chain.program.layers[0].bind({})


def test_created_tensors_go_where_the_state_is():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) + torch.ones_like(x, device=x.device).sum()

    chain = build_chain(Model(), (image(),))
    state = {name: tensor.to("meta") for name, tensor in chain.state.items()}
    (function,) = [layer.bind(state) for layer in chain.program.layers]
    assert function((image().to("meta"),))[0].device.type == "meta"


def test_recurrent_and_attention_modules_bind():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.lstm = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x):
            x = self.conv(x).flatten(2).transpose(1, 2)
            x, _ = self.attention(x, x, x)
            return self.lstm(x)[0]

    model = seeded(Model)
    chain = build_chain(model, (image(),))
    program = pickle.loads(pickle.dumps(chain.program))
    values = chain.layout(chain.pack((image(),)))
    with torch.inference_mode():
        for layer in program.layers:
            values = layer.bind(chain.program.pack(chain.state))(values)
    assert torch.equal(values[0], chain(image()))
    torch.testing.assert_close(values[0], model(image()), rtol=0, atol=1e-6)


def test_a_traceback_shows_the_generated_line():
    chain = build_chain(seeded(Residual), (image(),))
    (line,) = (line.strip() for line in chain.program.layers[0].source.splitlines() if line.endswith("# conv1"))
    try:
        chain.run((torch.zeros(1, 4, 16, 16),))
    except RuntimeError as error:
        text = "".join(traceback.format_exception(error))
    assert "<odin layer conv1>" in text
    assert line in text


def test_a_traceback_shows_its_own_models_line_though_another_had_a_layer_of_that_name():
    # Lines were noted only when a source was compiled first: a model that was built again showed the other one's.
    build_chain(seeded(Residual), (image(),))
    other = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 4, 5), act=nn.GELU(), conv2=nn.Conv2d(4, 4, 1)))
    assert build_chain(other.eval(), (image(),)).layers[0].name == "conv1"
    test_a_traceback_shows_the_generated_line()


@pytest.mark.slow
def test_another_process_computes_the_same_bits(tmp_path):
    chain = build_chain(seeded(Residual), (image(),))
    inputs = chain.layout(chain.pack((image(),)))
    torch.save({"state": chain.state, "inputs": inputs, "outputs": chain.run(inputs)}, tmp_path / "tensors.pt")
    (tmp_path / "program.pkl").write_bytes(pickle.dumps(chain.program))
    script = f"""
        import pickle, torch
        torch.set_num_threads({torch.get_num_threads()})
        saved = torch.load({str(tmp_path / "tensors.pt")!r}, weights_only=True)
        program = pickle.loads(open({str(tmp_path / "program.pkl")!r}, "rb").read())
        packed = program.pack(saved["state"])
        values = saved["inputs"]
        with torch.inference_mode():
            for layer in program.layers:
                values = layer.bind(packed)(values)
        assert torch.equal(values[0], saved["outputs"][0])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=PROMPT_S)
