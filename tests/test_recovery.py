"""Recovery: a narrowed network learns from the original, the same way however often it is stopped."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F

import networks
from isthmus.errors import BadInput, IsthmusError
from isthmus.network import Network, embed, low_precision, pool, tokenize
from isthmus.recovery import batches as batches_module
from isthmus.recovery.batches import LabelledBatches, TextBatches
from isthmus.recovery.losses import Learner, attention_loss, cosent_loss, hidden_loss, output_loss, selection
from isthmus.recovery.recipe import Recipe, uses_bf16
from isthmus.recovery.teacher import split_examples, teacher_outputs
from isthmus.recovery.train import recover
from isthmus.recovery.watch import Seen, Watched, layer_path, projection_of, see, sites_of, width_of
from isthmus.sites import LAYERS, WIDTH, discover, narrow_model
from isthmus.storage.stages import StageStore
from isthmus.tasks.divergence import divergence
from isthmus.tasks.task import HeldOut, Task
from narrowed import uneven

FAMILIES = [*networks.ARCHITECTURES]
RECIPE = Recipe(steps=20, learning_rate=3e-3, batch=16, warmup=3, precision="fp32", evaluate_every=5, patience=0)


def word_tokenizer() -> Any:
    """A tokenizer with one token a word, for the 120 rows of the tiny networks."""
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[SEP]", "[CLS]", "[UNK]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*special, *(f"w{index}" for index in range(115))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 1)])
    names = dict(zip(["pad_token", "sep_token", "cls_token", "unk_token", "mask_token"], special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def sentences(count: int = 240, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(f"w{generator.randrange(115)}" for _ in range(generator.randrange(3, 20))) for _ in range(count)]


def original(name: str = "bert") -> Network:
    return replace(networks.tiny(name), tokenizer=word_tokenizer())


def cut(name: str = "bert", seed: int = 0) -> tuple[Network, Network, dict[str, list[int]]]:
    """A tiny network, a narrower one (all kinds of site but its vocabulary), and what was kept."""
    teacher = original(name)
    bare = replace(teacher, tokenizer=None)
    kept = uneven(bare, seed)
    return teacher.with_model(narrow_model(teacher.model, discover(bare), kept)), teacher, kept


def weights(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# --- batches


def test_batches_are_the_same_for_the_same_seed_and_step() -> None:
    student, teacher, _ = cut()
    first, second = (TextBatches(sentences(), student, teacher, size=16, seed=3) for _ in range(2))
    for step in (0, 7, 31, 4):
        for one, other in zip(first.step(step), second.step(step), strict=True):
            assert torch.equal(one.student["input_ids"], other.student["input_ids"])
    epoch = [int(index) for step in range(len(first)) for batch in first.step(step) for index in batch.index]
    assert sorted(epoch) == list(range(240))
    other = TextBatches(sentences(), student, teacher, size=16, seed=4)
    assert [batch.index.tolist() for batch in other.step(0)] != [batch.index.tolist() for batch in first.step(0)]


def test_batches_bound_memory_and_share_their_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "MICRO_TOKENS", 200)
    student, teacher, _ = cut()
    batches = TextBatches(sentences(), student, teacher, size=64)
    for step in range(len(batches)):
        micros = batches.step(step)
        assert len(micros) > 2
        assert sum(batch.weight for batch in micros) == pytest.approx(1)
        assert all(batch.student["input_ids"].numel() <= 200 or len(batch.index) <= 8 for batch in micros)
    once = [int(index) for batch in batches.once() for index in batch.index]
    assert sorted(once) == list(range(240))


def test_processes_share_every_step() -> None:
    student, teacher, _ = cut()
    whole = TextBatches(sentences(), student, teacher, size=15)
    parts = [TextBatches(sentences(), student, teacher, size=15, rank=rank, world=2) for rank in (0, 1)]
    for step in (0, 5):
        texts = [index for part in parts for batch in part.step(step) for index in batch.index.tolist()]
        assert sorted(texts) == sorted(index for batch in whole.step(step) for index in batch.index.tolist())
        assert sum(batch.weight for part in parts for batch in part.step(step)) == pytest.approx(2)
    with pytest.raises(BadInput, match="1 texts in a step for 2 processes"):
        TextBatches(sentences(1), student, teacher, rank=0, world=2)


def test_texts_are_aligned_where_both_have_the_same_tokens() -> None:
    student, teacher, _ = cut()

    class Splitting:
        """Splits w0 into two tokens, as a narrowed vocabulary does."""

        pad_token_id = 0

        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.convert_ids_to_tokens = inner.convert_ids_to_tokens

        def __call__(self, texts: list[str], **options: Any) -> Any:
            return self.inner([text.replace("w0 ", "w1 w2 ") for text in texts], **options)

    student = replace(student, tokenizer=Splitting(teacher.tokenizer))
    texts = ["w3 w4 w5", "w0 w4 w5", "w3 w4 w5 w6 w7 w8 w9", "w0 w4 w5 w6 w7 w8 w9"]
    batches = TextBatches(texts, student, teacher, length=8)
    assert batches.aligned == [True, False, True, False]


def test_a_network_without_a_tokenizer_is_refused() -> None:
    student, teacher, _ = cut()
    with pytest.raises(BadInput, match="has no tokenizer"):
        TextBatches(sentences(), replace(student, tokenizer=None), teacher)


# --- recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; give at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"relation": -1.0}, "relation is -1.0"),
        ({"relation": 0.0, "output": 0.0}, "every weight is 0"),
        ({"precision": "fp8"}, "'fp8' is not auto, bf16 or fp32"),
        ({"attention_of": "key"}, "'key' is not value or query"),
    ],
)
def test_recipes_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Recipe(**{"steps": 10, "learning_rate": 1e-3, **change})


def test_learning_rate_rises_and_falls_to_zero() -> None:
    recipe = Recipe(steps=100, learning_rate=1.0, warmup=10)
    rates = [recipe.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[-1] == pytest.approx(0.01)
    assert uses_bf16("bf16")
    assert not uses_bf16("fp32")


# --- losses


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_zero_for_the_same_network(name: str) -> None:
    teacher = original(name)
    recipe = Recipe(steps=1, learning_rate=1e-3, hidden=1.0, attention=1.0, precision="fp32")
    for which in ("value", "query"):
        learner = Learner(teacher, teacher, replace(recipe, attention_of=which), None)
        assert learner.projection is None
        (batch,) = TextBatches(sentences(20), teacher, teacher, size=20).step(0)
        target = see(teacher, batch.teacher, learner.teacher_watched)
        assert float(learner(batch, target)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_loss_moves_a_narrowed_network(name: str) -> None:
    student, teacher, kept = cut(name)
    (batch,) = TextBatches(sentences(20), student, teacher, size=20).step(0)
    nothing = {"output": 0.0, "relation": 0.0}
    for weight in ("output", "relation", "hidden", "attention"):
        recipe = Recipe(steps=1, learning_rate=1e-3, precision="fp32", **{**nothing, weight: 1.0})
        learner = Learner(student, teacher, recipe, kept)
        loss = learner(batch, see(teacher, batch.teacher, learner.teacher_watched))
        assert float(loss) > 0
        loss.backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.model.parameters())
        student.model.zero_grad()
    assert not student.model._forward_hooks
    assert not any(module._forward_hooks for module in (*student.model.modules(), *teacher.model.modules()))


def test_hidden_states_are_those_of_the_layers() -> None:
    teacher = original()
    sites = sites_of(teacher)
    batch = TextBatches(sentences(9), teacher, teacher).step(0)[0]
    watched = Watched(tuple(layer_path(sites, layer) for layer in range(3)), projection_of(sites, 2, "value"))
    seen = see(teacher, batch.teacher, watched)
    states = teacher.model(**batch.teacher, output_hidden_states=True).hidden_states
    assert all(torch.equal(one, other) for one, other in zip(seen.hidden, states[1:], strict=True))
    value = teacher.model.encoder.layer[2].attention.self.value
    assert seen.projected is not None
    assert torch.equal(seen.projected, value(states[2]))


def test_fused_projections_are_told_apart() -> None:
    network = original("modernbert")
    sites = sites_of(network)
    value, query = projection_of(sites, 1, "value"), projection_of(sites, 1, "query")
    assert (value.module, value.place, value.repeat) == ("layers.1.attn.Wqkv", 2, 3)
    assert (query.place, query.repeat) == (0, 3)


def test_layers_and_width_are_matched_to_the_original() -> None:
    student, teacher, kept = cut()
    recipe = Recipe(steps=1, learning_rate=1e-3, hidden=1.0, attention=1.0)
    learner = Learner(student, teacher, recipe, kept)
    assert learner.projection is not None
    assert torch.equal(learner.projection.detach(), torch.eye(32)[kept[WIDTH]])
    assert [int(path.rpartition(".")[2]) for path in learner.teacher_watched.layers] == kept[LAYERS]
    assert learner.teacher_watched.projection is not None
    assert f".{kept[LAYERS][-1]}." in learner.teacher_watched.projection.module


def test_loss_formulas() -> None:
    torch.manual_seed(0)
    full = torch.randn(4, 6)
    assert float(output_loss(full[:, [0, 2]], full * 0 + F.pad(full[:, [0]], (0, 5)), selection([0, 2], 6))) > 0
    masked = torch.zeros(4, 6)
    masked[:, [0, 2]] = full[:, [0, 2]]
    assert float(output_loss(full[:, [0, 2]], masked, selection([0, 2], 6))) == pytest.approx(0, abs=1e-6)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    vectors, others = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    student = Seen(torch.zeros(2, 4), mask, (vectors,), vectors)
    teacher = Seen(torch.zeros(2, 4), mask, (others,), others)
    aligned = torch.tensor([False, True])
    by_hand = (1 - F.cosine_similarity(vectors[1, :2], others[1, :2], dim=-1)).mean()
    assert float(hidden_loss(student, teacher, aligned, None)) == pytest.approx(float(by_hand), abs=1e-6)
    ours, theirs = (F.log_softmax(part[1, :2] @ part[1, :2].T / 2, -1) for part in (vectors, others))
    nats = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    assert float(attention_loss(student, teacher, aligned)) == pytest.approx(float(nats), rel=1e-5)
    assert float(attention_loss(student, teacher, torch.zeros(2, dtype=torch.bool))) == 0
    left, right = torch.eye(3), torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 0]])
    cosine = F.cosine_similarity(left, right)
    terms = torch.stack([torch.zeros(()), *(20 * (cosine[low] - cosine[high]) for high, low in ((1, 0), (1, 2)))])
    found = cosent_loss(left, right, torch.tensor([0.2, 0.9, 0.2]))
    assert float(found) == pytest.approx(float(torch.logsumexp(terms, 0)), rel=1e-5)


# --- the loop


@pytest.mark.parametrize("name", [*FAMILIES, "bert-classifier", "modernbert-classifier"])
def test_recovery_brings_the_student_closer(name: str) -> None:
    student, teacher, kept = cut(name)
    before = weights(teacher)
    result = recover(student, teacher, sentences(), RECIPE, kept=kept)
    loss, held = result.curves
    assert held[0] == "recovery: held-out divergence"
    assert held[1] == "nats"
    assert [step for step, _ in held[2]] == [0, 5, 10, 15, 20]
    assert min(value for _, value in held[2]) < held[2][0][1]
    assert len(loss[2]) == 20
    assert same(before, weights(teacher))
    assert not student.model.training
    assert all(parameter.grad is None for parameter in student.model.parameters())
    assert (result.steps, result.stopped_early) == (20, False)


def test_recovery_is_deterministic_and_keeps_the_best_weights() -> None:
    results = []
    for _ in range(2):
        student, teacher, kept = cut()
        results.append(recover(student, teacher, sentences(), RECIPE, kept=kept, seed=5))
    assert same(weights(results[0].network), weights(results[1].network))
    student, teacher, kept = cut()
    wild = replace(RECIPE, steps=60, learning_rate=0.3, warmup=0, evaluate_every=2, patience=2)
    result = recover(student, teacher, sentences(), wild, kept=kept, seed=5)
    points = result.curves[1][2]
    assert result.stopped_early
    assert result.steps == points[-1][0] < 60
    best = min(value for _, value in points)
    assert best not in (points[-1][1], points[-2][1])
    _, held = split_examples(sentences(), 5)
    made, wanted = (torch.from_numpy(embed(network, held)) for network in (student, teacher))
    assert float(divergence(made, wanted, "mean")) == pytest.approx(best, rel=1e-4)


def test_outputs_computed_beforehand_teach_the_same() -> None:
    """Several recoveries may share what the original makes of the texts; it is kept in half precision."""
    recipe = Recipe(steps=12, learning_rate=1e-3, batch=16, evaluate_every=6, precision="fp32")
    student, teacher, kept = cut()
    plain = recover(student, teacher, sentences(), recipe, kept=kept)
    student, teacher, kept = cut()
    outputs = teacher_outputs(teacher, sentences(), recipe)
    assert outputs.table.shape == (len(set(sentences())), width_of(sites_of(teacher)))
    shared = recover(student, teacher, sentences(), recipe, kept=kept, outputs=outputs)
    for (_, _, one), (_, _, other) in zip(plain.curves, shared.curves, strict=True):
        assert [step for step, _ in one] == [step for step, _ in other]
        assert np.allclose([value for _, value in one], [value for _, value in other], rtol=2e-3)


@pytest.mark.parametrize("enabled", [False, True])
def test_low_precision_is_left_behind(enabled: bool) -> None:
    """Gradients in bfloat16 are near those in float32, and nothing of the setting stays."""
    flash = torch.backends.cuda.flash_sdp_enabled()
    network = original()
    inputs = tokenize(network, sentences(8))

    def gradient() -> torch.Tensor:
        network.model.zero_grad()
        pool(network, network.model(**inputs), inputs["attention_mask"]).float().square()[:, 0].sum().backward()
        return torch.cat([p.grad.flatten() for p in network.model.parameters() if p.grad is not None])

    wanted = gradient()
    with low_precision(enabled):
        found = gradient()
    assert float(F.cosine_similarity(wanted, found, dim=0)) > 0.99
    assert torch.equal(wanted, found) is not enabled
    assert not torch.is_autocast_enabled("cpu")
    assert torch.backends.cuda.flash_sdp_enabled() == flash


def test_bf16_and_all_losses_run() -> None:
    student, teacher, kept = cut()
    recipe = replace(RECIPE, steps=4, hidden=0.5, attention=0.5, precision="bf16", evaluate_every=0)
    result = recover(student, teacher, sentences(), recipe, kept=kept)
    assert [curve[0] for curve in result.curves] == ["recovery: loss"]
    assert next(student.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", ["bert", "bert-classifier"])
def test_labels_are_learnt_from(name: str) -> None:
    student, teacher, kept = cut(name)
    texts = sentences(60)
    pairs = tuple(zip(texts[:30], texts[30:], (index / 30 for index in range(30)), strict=True))
    labelled = tuple((text, index % 2) for index, text in enumerate(texts))
    task = Task("sts", "made", tuple(texts), HeldOut(), "spearman", "", pairs, labelled, ("a", "b"))
    recipe = replace(RECIPE, output=0.0, relation=0.0, labels=1.0, evaluate_every=0, steps=40)
    points = recover(student, teacher, sentences(), recipe, kept=kept, task=task).curves[0][2]
    assert sum(value for _, value in points[-8:]) < sum(value for _, value in points[:8])


def test_labelled_batches_cover_the_examples() -> None:
    student, _, _ = cut()
    texts = [(text, text) for text in sentences(21)]
    batches = LabelledBatches(texts, list(range(21)), student, size=7)
    assert sorted(int(target) for step in range(3) for target in batches.step(step).target) == list(range(21))
    batch = batches.step(1)
    assert torch.equal(batch.inputs["input_ids"][:7], batch.inputs["input_ids"][7:])


def test_a_loss_that_is_not_finite_is_one_clear_error() -> None:
    student, teacher, kept = cut()
    with torch.no_grad():
        next(student.model.parameters())[7] = float("nan")
    with pytest.raises(IsthmusError, match="no longer a finite number at step 1; give a lower learning rate"):
        recover(student, teacher, sentences(), RECIPE, kept=kept)


def test_too_few_texts_are_refused() -> None:
    student, teacher, kept = cut()
    with pytest.raises(BadInput, match="at least two that differ"):
        recover(student, teacher, ["w1", "w1"], RECIPE, kept=kept)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
class Killed(BaseException):
    """Stops a run where it is."""


@pytest.mark.parametrize("batch", [8, 64], ids=["teacher step by step", "teacher remembered"])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, batch: int) -> None:
    recipe = replace(RECIPE, batch=batch, evaluate_every=4, patience=3)
    student, teacher, kept = cut()
    undisturbed = recover(student, teacher, sentences(), recipe, kept=kept)
    expected = weights(student)

    def kill(stage: str, done: float, total: float, note: str = "") -> None:
        if done == 10:
            raise Killed

    arguments = {"seed": 0}
    student, teacher, kept = cut()
    stages = StageStore(tmp_path / "stages", arguments)
    with pytest.raises(Killed):
        recover(student, teacher, sentences(), recipe, kept=kept, stages=stages, save_seconds=0, progress=kill)
    seen = []
    student, teacher, kept = cut()
    stages = StageStore(tmp_path / "stages", arguments, resume=True)
    resumed = recover(
        student, teacher, sentences(), recipe, kept=kept, stages=stages, progress=lambda *step: seen.append(step[1])
    )
    assert seen[0] == 11
    assert same(expected, weights(student))
    assert resumed.curves == undisturbed.curves
    # A run that is over is only read.
    student, teacher, kept = cut()
    again = recover(student, teacher, sentences(), recipe, kept=kept, stages=stages, progress=kill)
    assert same(expected, weights(student))
    assert again.curves == undisturbed.curves
    with pytest.raises(BadInput, match="begun with another recipe"):
        recover(student, teacher, sentences(), replace(recipe, steps=30), kept=kept, stages=stages)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Under ``accelerate launch`` each process takes its share; output losses do not depend on how texts are shared."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import json, test_recovery as t\n"
        "from accelerate import PartialState\n"
        "from dataclasses import replace\n"
        "student, teacher, kept = t.cut()\n"
        "recipe = replace(t.RECIPE, steps=6, relation=0.0, evaluate_every=3)\n"
        "result = t.recover(student, teacher, t.sentences(), recipe, kept=kept)\n"
        "state = PartialState()\n"
        "from safetensors.torch import save_file\n"
        "found = {'processes': str(state.num_processes), 'curves': json.dumps(result.curves)}\n"
        "own = {name: tensor.clone() for name, tensor in t.weights(student).items()}\n"
        "save_file(own, sys.argv[1] + str(state.process_index), metadata=found)\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launch, str(script), str(tmp_path / "out")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr
    student, teacher, kept = cut()
    recipe = replace(RECIPE, steps=6, relation=0.0, evaluate_every=3)
    alone = recover(student, teacher, sentences(), recipe, kept=kept)
    first, second = (safe_open(tmp_path / f"out{rank}", "pt") for rank in (0, 1))
    assert first.metadata()["processes"] == second.metadata()["processes"] == "2"
    for name, tensor in weights(student).items():
        assert torch.equal(first.get_tensor(name), second.get_tensor(name))
        torch.testing.assert_close(first.get_tensor(name), tensor, atol=2e-4, rtol=2e-3)
    for mine, theirs in zip(alone.curves, json.loads(first.metadata()["curves"]), strict=True):
        torch.testing.assert_close(torch.tensor(mine[2]), torch.tensor(theirs[2]), atol=1e-4, rtol=1e-3)
