"""A run: the loss falls, the best checkpoint becomes the adapter, and the adapter gives the trained encoder back."""

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback, TrainerControl

from llmindex.encode.encoder import Encoder
from llmindex.encode.whitening import Whitening
from llmindex.errors import AdapterError, CorpusError, MissingPackage, ModelError, RecipeError, UsageError
from llmindex.progress import Progress
from llmindex_training import adapter as training_adapter
from llmindex_training import lora, quantize, trainer
from llmindex_training import recipe as recipes
from llmindex_training.evaluate_clustering import kmeans_v_measure
from llmindex_training.evaluation_data import LabelledTexts
from llmindex_training.recipe import Recipe
from llmindex_training.reporting import TrainReport
from llmindex_training.scoring import CheckpointScore, ClusteringScore
from tests.training_runs import COUNT, TOPICS, tiny_recipe, write_pairs

TEXTS = ["The goal of the day", "A vote", "Number 7: bread, once more"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


@dataclass
class Run:
    """A finished run, and what was told of it on the way."""

    report: TrainReport
    recipe: Recipe
    told: list[Progress] = field(default_factory=list)

    @property
    def log(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.report.run / "log.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(pairs: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = tiny_recipe(tiny_model, "model.max_tokens=200")
    told: list[Progress] = []

    def tell(record: Progress) -> None:
        assert not (folder / "adapter").exists()
        told.append(record)

    return Run(trainer.train([pairs], folder, recipe, on_progress=tell), recipe, told)


@dataclass
class Scripted:
    """A score that does not look at the encoder."""

    values: list[float]
    identity: str = "a script"

    def __call__(self, encoder: Encoder) -> float:
        return self.values.pop(0)


def test_the_loss_falls_and_the_score_rises(run: Run) -> None:
    losses = [entry["loss"] for entry in run.log if "loss" in entry]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert run.report.scores[12] > run.report.scores[0]


def test_the_report(run: Run, pairs: Path) -> None:
    report = run.report
    assert (report.pairs, report.steps, report.complete_before) == (COUNT, 12, False)
    assert list(report.scores) == [0, 4, 8, 12]
    assert report.kept_steps == (max((4, 8, 12), key=lambda step: report.scores[step]),)
    assert report.adapter == report.run / "adapter"
    assert report.tokens > 12 * 8 * 2 * 10
    assert 0 < report.seconds * report.tokens_per_s
    assert report.cosine > 0.9999
    assert json.loads(json.dumps(report.to_json()))["adapter"] == str(report.adapter)
    again = trainer.train([pairs], report.run, run.recipe)
    assert again.complete_before
    assert (again.scores, again.kept_steps, again.steps) == (report.scores, report.kept_steps, report.steps)
    assert again.tokens == 0


def test_the_folder(run: Run) -> None:
    folder = run.report.run
    names = ["adapter", "checkpoints", "lock", "log.jsonl", "recipe.toml", "run.json", "tensorboard"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert recipes.load(str(folder / "recipe.toml")) == run.recipe
    adapter = ["adapter_config.json", "adapter_model.safetensors", "encoder.json"]
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == adapter
    assert [entry["step"] for entry in run.log] == sorted(entry["step"] for entry in run.log)
    assert {key for entry in run.log for key in entry} == {"step", "loss", "learning_rate", "grad_norm", "score"}


def test_what_is_told(run: Run) -> None:
    assert {record.stage for record in run.told} == {"train"}
    assert [record.done for record in run.told] == sorted(record.done for record in run.told)
    last = run.told[-1]
    assert (last.done, last.total, last.unit, last.fresh) == (12, 12, "steps", 12)
    assert last.tokens == run.report.tokens
    assert last.detail.startswith("score 0.")
    assert "loss " in last.detail
    assert "lr " in last.detail


def test_the_adapter_gives_the_trained_encoder_back(run: Run) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    loaded = Encoder.load(str(run.report.adapter), dtype="float32", device="cpu")
    attached = training_adapter.load_base(run.recipe, "cpu")
    wrapped = training_adapter.attach(attached, run.recipe)
    checkpoint = run.report.run / "checkpoints" / f"checkpoint-{run.report.kept_steps[0]}"
    set_peft_model_state_dict(wrapped, load_peft_weights(str(checkpoint), device="cpu"))
    attached.backbone.model.eval()
    np.testing.assert_allclose(loaded.encode(TEXTS), attached.encode(TEXTS), atol=1e-5)
    base = training_adapter.load_base(run.recipe, "cpu").encode(TEXTS)
    assert np.abs(loaded.encode(TEXTS) - base).max() > 0.01
    spec = loaded.spec
    assert (spec.prompt, spec.pooling, spec.max_tokens) == (attached.spec.prompt, run.recipe.model.pooling, 200)
    assert spec.adapter_sha256


@pytest.mark.parametrize(
    ("values", "best"),
    [([9, 1, 3, 2], 8), ([0, 5, 1, 1], 4), ([0, 1, 1, 1], 4), ([0, -2, -1, -0.5], 12)],
)
def test_the_best_checkpoint_is_kept(
    pairs: Path, tiny_model: Path, tmp_path: Path, values: list[float], best: int
) -> None:
    score: CheckpointScore = Scripted([float(value) for value in values])
    report = trainer.train([pairs], tmp_path / "run", tiny_recipe(tiny_model), score=score)
    assert report.kept_steps == (best,)
    assert list(report.scores.values()) == values
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == sorted({f"checkpoint-{best}", "checkpoint-12"} if best != 12 else {"checkpoint-8", "checkpoint-12"})
    weights = (tmp_path / f"run/checkpoints/checkpoint-{best}/adapter_model.safetensors").read_bytes()
    assert (report.adapter / "adapter_model.safetensors").read_bytes() == weights


def test_the_last_step_is_scored_by_older_transformers_as_well(
    pairs: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = DefaultFlowCallback.on_step_end

    def older(self: Any, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:  # noqa: ANN401
        before = control.should_evaluate
        newest(self, args, state, control, **kwargs)
        if state.global_step % state.eval_steps:
            control.should_evaluate = before
        return control

    monkeypatch.setattr(DefaultFlowCallback, "on_step_end", older)
    report = trainer.train([pairs], tmp_path / "run", tiny_recipe(tiny_model, "optim.steps=3"))
    assert (list(report.scores), report.kept_steps) == ([0, 3], (3,))


def test_without_a_score_the_last_checkpoint_is_kept(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_model, "data.held_out=0", "optim.steps=6")
    report = trainer.train([pairs], tmp_path / "run", recipe)
    assert (report.scores, report.kept_steps) == ({}, (6,))
    assert trainer.train([pairs], tmp_path / "run", recipe).kept_steps == (6,)


def test_the_last_checkpoints_are_averaged(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    recipe = tiny_recipe(tiny_model, "optim.average=3", "optim.steps=14")
    report = trainer.train([pairs], tmp_path / "run", recipe)
    assert report.kept_steps == (8, 12, 14)
    assert trainer.train([pairs], tmp_path / "run", recipe).kept_steps == (8, 12, 14)
    name = "adapter_model.safetensors"
    parts = [load_file(tmp_path / f"run/checkpoints/checkpoint-{step}/{name}") for step in (8, 12, 14)]
    made = load_file(report.adapter / name)
    assert made.keys() == parts[0].keys()
    modes = {(report.run / each).stat().st_mode for each in ("recipe.toml", f"averaged/{name}")}
    assert len(modes) == 1  # as scripts/average_adapters.py leaves it to others
    for key, weight in made.items():
        np.testing.assert_allclose(weight, np.mean([part[key] for part in parts], axis=0), atol=1e-6)
    assert report.cosine > 0.9999


def test_scored_by_clustering(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    texts = [f"{TOPICS[n % 4]} {n}" for n in range(40)]
    sets = [LabelledTexts(name, texts, np.arange(40) % 4, 4) for name in ("one", "two")]
    score = ClusteringScore(sets)
    recipe = tiny_recipe(tiny_model, "optim.steps=4", "model.max_tokens=32")
    report = trainer.train([pairs], tmp_path / "run", recipe, score=score)
    kept = Encoder.load(str(report.adapter), dtype="float32", device="cpu")
    assert report.scores[4] == pytest.approx(kmeans_v_measure(kept.encode(texts), sets[0]), abs=0.05)
    assert score.identity == ClusteringScore(list(sets)).identity
    assert score.identity != ClusteringScore(sets[:1]).identity
    assert score.identity.startswith("the V-measure of one, two (")
    with pytest.raises(RecipeError, match=r"was scored by the V-measure of one, two .*, now by the held-out pairs; "):
        trainer.train([pairs], tmp_path / "run", recipe)


@pytest.mark.parametrize(
    "settings",
    [
        ("optim.gradient_checkpointing=true",),
        ("model.attention=bidirectional", "model.pooling=mean", "optim.schedule=cosine"),
        ("optim.dtype=bfloat16", "optim.schedule=constant", "optim.weight_decay=0.1"),
        ("data.query_prompt=true", "model.query_prompt=none", "data.batches=source", "data.max_per_source=30"),
        ("optim.steps=0", "loss.matryoshka=[8, 16]", "model.lora_alpha=2.5"),
        ("model.whitening=12",),
    ],
    ids=" ".join,
)
def test_other_recipes(pairs: Path, tiny_model: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    recipe = tiny_recipe(tiny_model, "optim.steps=3", *settings)
    report = trainer.train([pairs], tmp_path / "run", recipe)
    assert report.steps == (recipe.optim.steps or (COUNT - 16) // 8)
    assert report.cosine > 0.99
    assert Encoder.load(str(report.adapter)).spec.attention == recipe.model.attention


def test_whitening_is_fitted_on_what_was_trained_on(run: Run, pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_model, "model.max_tokens=200", "model.whitening=12")
    told: list[Progress] = []
    report = trainer.train([pairs], tmp_path / "run", recipe, on_progress=told.append)
    assert report.cosine > 0.999
    assert (told[0].stage, told[0].done, told[0].detail[:5]) == ("train", 0, "score")  # which is no step's time
    assert (told[-1].stage, told[-1].done, told[-1].total) == ("whiten", 96, 96)
    plain, whitened = (Encoder.load(str(each.adapter), dtype="float32") for each in (run.report, report))
    trained_on = pq.read_table(pairs)
    drawn = np.random.default_rng(0).permutation(COUNT)[:48]
    texts = [trained_on[side][int(row)].as_py() for side in ("text", "text_pair") for row in drawn]
    wanted = Whitening.fit(plain.encode(texts), 12)(torch.from_numpy(plain.encode(TEXTS)))
    np.testing.assert_allclose(whitened.encode(TEXTS), torch.nn.functional.normalize(wanted), atol=1e-3)
    assert (whitened.spec.dim, whitened.spec.whitened, plain.spec.whitened) == (12, True, False)


def test_what_a_recipe_cannot_have_is_told(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sources: list[str | None] = [*["big"] * 70, *["small"] * 7, *["tiny"] * 3]
    pairs = write_pairs(tmp_path / "pairs.parquet", source=sources)
    settings = ("data.batches=source", "data.held_out=0", "model.whitening=64", "optim.steps=2")
    trainer.train([pairs], tmp_path / "run", tiny_recipe(tiny_model, *settings))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        'data.batches is "source", and 10 pairs are not trained on, since their sources do not fill a batch of 8: '
        '"small" 7, "tiny" 3; lower optim.batch_size, or take "mixed"',
        "model.whitening is 64, but the vectors get 32 values: 160 texts, whose vectors have 32, allow no more",
    ]


def test_gradient_checkpointing_changes_memory_alone(run: Run, pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    report = trainer.train([pairs], tmp_path / "run", tiny_recipe(tiny_model, "optim.gradient_checkpointing=true"))
    mine, plain = (load_file(each / "adapter_model.safetensors") for each in (report.adapter, run.report.adapter))
    for name, value in plain.items():
        np.testing.assert_allclose(mine[name], value, rtol=1e-3, atol=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("setting", "error", "why"),
    [
        (
            "model.lora_targets=['v_proj', 'q_prj']",
            RecipeError,
            '^model.lora_targets: LlamaModel has no linear layers "q_prj"; did you mean "q_proj"[?] it has down_proj, ',
        ),
        ("model.lora_targets=['embed_tokens']", RecipeError, 'no linear layers "embed_tokens"; it has down_proj, '),
        ("model.lora_targets=['self_attn']", RecipeError, 'no linear layers "self_attn"; '),
        ("model.revision=main", ModelError, '^model.revision "main" is for models of the hub'),
        ("model.base=./nowhere", ModelError, "nowhere"),
        ("data.max_tokens=9999", RecipeError, "^data.max_tokens 9999 is more than the model"),
        ("optim.device=cuda:99", RecipeError, 'device "cuda:99" is not available .*; optim.device = auto takes'),
        (
            "loss.matryoshka=[4, 9999]",
            RecipeError,
            "^loss.matryoshka has 9999, more than the [0-9]+ dimensions of the vectors$",
        ),
        ("loss.temperature=1e-40", RecipeError, "loss.temperature must be at least 0.001, not 1e-40"),
        ("model.prompt=no place for a text", RecipeError, "text"),
        ("optim.batch_size=79", CorpusError, "80 pairs are too few for batches of 79 beside 16 held out"),
        ("optim.dtype=float8", RecipeError, '^optim.dtype: unknown dtype "float8"'),
        ("optim.device=gpu", RecipeError, '^optim.device: unknown device "gpu"'),
        ("model.quantize=true", ModelError, "^model.quantize needs a CUDA GPU; leave it out to train on this machine$"),
        ("optim.learning_rate=1e38", ModelError, "finite|loss of step"),
    ],
)
def test_bad_recipes(
    pairs: Path, tiny_model: Path, tmp_path: Path, setting: str, error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why) as caught:
        trainer.train([pairs], tmp_path / "run", tiny_recipe(tiny_model, setting))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "adapter").exists()
    # What was never trained does not stand in the way of the next attempt.
    if "learning_rate" not in setting:
        good = tiny_recipe(tiny_model, "optim.steps=2")
        assert trainer.train([pairs], tmp_path / "run", good).steps == 2


def test_quantized(pairs: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    # The same on a CPU, but for its kernel that lets no gradients through.
    monkeypatch.setattr(quantize, "_DEVICES", ("cpu",))
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    recipe = tiny_recipe(tiny_model, "model.quantize=true", "model.whitening=8")
    encoder = training_adapter.load_base(recipe, "cpu")
    wrapped = training_adapter.attach(encoder, recipe)
    four_bits = [layer for layer in encoder.backbone.model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert len(four_bits) == 7 * 2  # all linear layers of both of its layers
    assert {layer.weight.dtype for layer in four_bits} == {torch.uint8}
    assert sum(isinstance(layer, lora.LoraLinear) for layer in wrapped.modules()) == len(recipe.model.lora_targets) * 2

    report = trainer.train([pairs], tmp_path / "run", recipe)
    losses = [entry["loss"] for entry in Run(report, recipe).log if "loss" in entry]
    assert losses[-1] < losses[0]
    # The adapter was proven on the backbone in full, which is what it is used with.
    assert report.cosine is not None
    assert report.cosine > 0.9999
    assert Encoder.load(str(report.adapter)).encode(TEXTS).shape == (3, 8)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_a_quantized_backbone_attends_as_asked_and_is_there_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], attention: str
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(quantize, "_DEVICES", ("cpu",))
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    recipe = tiny_recipe(tiny_model, "model.quantize=true", f"model.attention={attention}", "model.lora_dropout=0")
    backbone = training_adapter.load_base(recipe, "cpu").backbone
    ids_BT = torch.tensor([[300, 310, 320, 330], [300, 310, 320, 350]])
    with torch.no_grad():
        first_BD = backbone(ids_BT, torch.ones_like(ids_BT))[:, 0]
    assert torch.equal(first_BD[0], first_BD[1]) == (attention == "causal")
    # Layers in full, beside those of 4 bits, would take what quantising saves.
    assert any(module is backbone.layers for module in backbone.model.modules())
    assert "Loading" not in capfd.readouterr().err


def test_quantized_without_its_package(
    pairs: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_DEVICES", ("cpu",))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest)
    )
    with pytest.raises(MissingPackage, match=r"^model.quantize needs bitsandbytes: pip install bitsandbytes$"):
        trainer.train([pairs], tmp_path / "run", tiny_recipe(tiny_model, "model.quantize=true"))


def test_a_folder_of_something_else(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\\udcff is not UTF-8; name another one$"):
        trainer.train([pairs], tmp_path / "runs" / "x\udcff", tiny_recipe(tiny_model))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for overwrite in (False, True):
        for place in (tmp_path, tmp_path / "notes.txt"):
            with pytest.raises(UsageError, match="exists and is no training run; name another folder with -o"):
                trainer.train([pairs], place, tiny_recipe(tiny_model), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_adapter_that_is_not_what_was_trained_is_refused(
    pairs: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_model, "optim.steps=2")

    def train() -> TrainReport:
        return trainer.train([pairs], tmp_path / "run", recipe)

    with monkeypatch.context() as patch:
        loaded = Encoder.load
        patch.setattr(Encoder, "load", lambda name, **options: loaded(str(tiny_model), pooling="max"))
        with pytest.raises(AdapterError, match="is not the one that was trained: cosine "):
            train()
    assert not (tmp_path / "run" / "adapter").exists()
    report = train()
    assert (report.tokens, report.kept_steps) == (0, (2,))


def test_one_gpu_of_several(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers would take the first one, and share each batch out among all."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for name, number in (("cuda:1", 1), ("cuda", 0)):
        trainer._to_one_gpu(arguments, torch.device(name))
        assert arguments.device == chosen.pop() == torch.device("cuda", number)
        assert (arguments.n_gpu, arguments.train_batch_size) == (1, arguments.per_device_train_batch_size)
