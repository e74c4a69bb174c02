"""Recipes: every key is known, of its type and in its range, or the run does not start."""

import tomllib
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmindex.encode.spec import ATTENTIONS, POOLINGS
from llmindex.errors import RecipeError
from llmindex_training import recipe as recipes
from llmindex_training.recipe import Data, Loss, Model, Optim, Recipe

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
POSITIVE = st.floats(1e-30, 1e30)
PROMPTS = TEXTS.map(lambda text: text.replace("{", "") + "{text}")
WHOLE = st.integers(1, 2**40)


def refused(*settings: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipes.load("paper", settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_shipped_recipes_load() -> None:
    assert {"paper", "tiny-cpu"} <= set(recipes.names())
    for name in recipes.names():
        assert recipes.load(name).optim.steps >= 0


def test_the_published_recipe() -> None:
    recipe = recipes.load("paper")
    assert (recipe.model.lora_rank, recipe.model.lora_alpha, recipe.model.lora_dropout) == (64, 16, 0.05)
    assert set(recipe.model.lora_targets) == {"q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (recipe.loss.temperature, recipe.loss.margin, recipe.loss.symmetric) == (0.2, 0, False)
    assert (recipe.optim.batch_size, recipe.optim.learning_rate, recipe.optim.warmup_steps) == (120, 5e-5, 100)
    assert (recipe.optim.steps, recipe.data.max_tokens) == (0, 100)
    assert (recipe.model.prompt, recipe.model.pooling) == ("cluster", "last")


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ("optim.learning_rat=1", '"optim.learning_rat"; did you mean "optim.learning_rate"?'),
        ("model.lora_r=1", '"model.lora_r"; did you mean "model.lora_'),
        ("los.margin=0.1", '"los"; did you mean "loss"?'),
        ("data.zzz=1", '"data.zzz"; known are max_tokens'),
    ],
)
def test_an_unknown_key_names_the_nearest(setting: str, nearest: str) -> None:
    assert f"recipe paper has an unknown key {nearest}" in refused(setting)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("optim.steps=1.5", "optim.steps must be a whole number, not 1.5"),
        ("optim.steps=true", "optim.steps must be a whole number, not true"),
        ("optim.learning_rate=fast", 'optim.learning_rate must be a number, not "fast"'),
        ("loss.temperature=true", "loss.temperature must be a number, not true"),
        ("loss.symmetric=1", "loss.symmetric must be true or false, not 1"),
        ("model.prompt=3", "model.prompt must be a string, not 3"),
        ("model.lora_targets=q_proj", 'model.lora_targets must be a list, not "q_proj"'),
        ("model.lora_targets=[1]", "model.lora_targets must be a string, not 1"),
        ("loss.matryoshka=[64, 1.5]", "loss.matryoshka must be a whole number, not 1.5"),
        ("model.pooling=lsat", 'model.pooling is "lsat", not one of last, '),
        ("model.pooling=[1]", "not one of last, "),
        ("optim.schedule={a = 1}", "not one of linear, "),
        ("data.batches=none", "not one of mixed, source"),
        ("optim.steps=1979-05-27", "optim.steps must be a whole number"),
        ("optim.steps=1\nbatch_size", 'optim.steps must be a whole number, not "1\\nbatch_size"'),
        ("optim.steps=1\nbatch_size=4", "--set optim.steps: its value goes on in a second line with another key"),
        ("optim.steps=1\n[model]", "--set optim.steps: its value goes on in a second line with another key"),
        ("optim.steps=" + "9" * 5000, 'optim.steps must be a whole number, not "999'),
        ("optim.batch_size=" + "9" * 400, "optim.batch_size must be a number up to 1099511627776, not a larger one"),
        ("optim.learning_rate=" + "9" * 400, "optim.learning_rate must be a number up to 1099511627776"),
        ("model.pooling=0x" + "f" * 5000, "a number must be up to 1099511627776"),
        ("data.seed=" + "[" * 3000, "a value is nested too deeply; no key takes more than a list"),
        ("optim.steps=9999999", "optim.steps must be at most 1000000, not 9999999"),
        ("model.prompt=\udcff {text}", "model.prompt must be UTF-8, not '\\udcff {text}'"),
        ("model.lora_targets=['\udcff']", "model.lora_targets must be UTF-8, not '\\udcff'"),
        ("model.prompt=", 'model.prompt: prompt template "" does not contain {text}'),
        ("model.prompt=clutser", 'model.prompt: unknown prompt "clutser"; did you mean "cluster"?'),
        ("model.query_prompt={text}{text}", "model.query_prompt: prompt "),
    ],
)
def test_a_value_of_another_type(setting: str, why: str) -> None:
    assert why in refused(setting)


@pytest.mark.parametrize(
    "setting",
    [
        "data.max_tokens=0",
        "data.max_per_source=-1",
        "data.query_prompt=true",
        "data.held_out=-1",
        "data.seed=-1",
        "data.seed=4294967296",
        "model.max_tokens=0",
        "model.lora_rank=0",
        "model.lora_alpha=0",
        "model.lora_alpha=nan",
        "model.lora_alpha=inf",
        "model.lora_dropout=nan",
        "model.lora_rank=65537",
        'model.base=""',
        "optim.learning_rate=nan",
        "optim.weight_decay=inf",
        "optim.weight_decay=nan",
        "optim.max_grad_norm=inf",
        "model.lora_dropout=1",
        "model.lora_targets=[]",
        "loss.temperature=0",
        "loss.temperature=nan",
        "loss.temperature=inf",
        "loss.margin=-0.1",
        "loss.margin=2",
        "loss.false_negative_margin=nan",
        "loss.false_negative_margin=-5",
        "loss.matryoshka=[0]",
        "optim.batch_size=1",
        "optim.steps=-1",
        "optim.learning_rate=0",
        "optim.learning_rate=inf",
        "optim.warmup_steps=-1",
        "optim.weight_decay=-1",
        "optim.weight_decay=1e30",
        "optim.max_grad_norm=0",
        "optim.evaluate_every=0",
        "optim.token_budget=-1",
        "optim.average=-1",
        "model.whitening=-1",
    ],
)
def test_a_value_out_of_range_is_named(setting: str) -> None:
    assert refused(setting).startswith(f"recipe paper: {setting.partition('=')[0]} must ")


@pytest.mark.parametrize("setting", ["optim.steps", "steps=1", "=1", ".=1", "optim.=1", ".steps=1", ""])
def test_a_setting_of_another_form(setting: str) -> None:
    assert refused(setting) == f'--set "{setting}" must have the form section.key=value, such as optim.steps=200'


def test_settings_are_toml_or_bare_words() -> None:
    settings = [
        "optim.steps=200",
        "optim.learning_rate=1e-4",
        "optim.weight_decay=1",
        "loss.symmetric=true",
        "model.pooling=mean",
        'model.prompt="A = {text}"',
        "model.query_prompt=Instruct: find\\nQuery: {text}",
        "model.lora_targets=['q_proj', \"k_proj\"]",
        "loss.matryoshka=[8, 16]",
        " optim.warmup_steps = 3",
        "optim.steps=300",
    ]
    recipe = recipes.load("paper", settings)
    assert (recipe.optim.steps, recipe.optim.warmup_steps) == (300, 3)  # the last of two settings counts
    assert recipe.optim.learning_rate == 1e-4
    assert isinstance(recipe.optim.weight_decay, float)
    assert recipe.loss == Loss(symmetric=True, matryoshka=(8, 16))
    assert recipe.model.prompt == "A = {text}"
    assert recipe.model.query_prompt == "Instruct: find\\nQuery: {text}"
    assert recipe.model.lora_targets == ("q_proj", "k_proj")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[optim]\nsteps = 7\n", encoding="utf-8")
    assert recipes.load(str(path)) == Recipe(optim=Optim(steps=7))
    for content, why in [
        (b"[optim\n", "is not valid TOML"),
        (b"\xff", "is not UTF-8"),
        (b"optim = 3\n", "optim must be a table"),
        (b"[optim.steps]\n", "optim.steps must be a whole number"),
        (
            b"[optim]\nsteps = %s" % (b"9" * 5000),
            "a number must be up to 1099511627776, not one of thousands of digits",
        ),
        (b"[data]\nseed = %s" % (b"[" * 5000), "a value is nested too deeply"),
        (b"[data]\nseed = %s%s" % (b"[" * 480, b"]" * 480), r"data\.seed must be a whole number|nested too deeply"),
    ]:
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=why):
            recipes.load(str(path))
    with pytest.raises(RecipeError, match=r'no recipe "none": not a file, nor one of .*paper, tiny-cpu'):
        recipes.load("none")


def test_changes_are_named() -> None:
    changed = recipes.load("paper", ["optim.steps=5", "model.prompt=eol"])
    assert recipes.changes(recipes.load("paper"), changed) == [
        'model.prompt was "cluster", now "eol"',
        "optim.steps was 0, now 5",
    ]


@given(
    st.builds(
        Recipe,
        data=st.builds(
            Data,
            max_tokens=WHOLE,
            batches=st.sampled_from(["mixed", "source"]),
            query_prompt=st.booleans(),
            held_out=st.integers(0, 10),
            seed=st.integers(0, 2**32 - 1),
        ),
        model=st.builds(
            Model,
            base=TEXTS.filter(bool),
            prompt=PROMPTS,
            query_prompt=st.just("") | PROMPTS,
            pooling=st.sampled_from(POOLINGS),
            attention=st.sampled_from(ATTENTIONS),
            lora_rank=st.integers(1, 2**16),
            lora_alpha=POSITIVE,
            lora_dropout=st.floats(0, 0.99),
            lora_targets=st.lists(TEXTS, min_size=1).map(tuple),
        ),
        loss=st.builds(
            Loss,
            temperature=st.floats(1e-3, 1e30),
            margin=st.floats(0, 1.99),
            symmetric=st.booleans(),
            false_negative_margin=st.floats(-2, 2),
            matryoshka=st.lists(WHOLE).map(tuple),
        ),
        optim=st.builds(Optim, learning_rate=POSITIVE, max_grad_norm=POSITIVE, steps=st.integers(0, 9), dtype=TEXTS),
    ).filter(lambda recipe: bool(recipe.model.query_prompt) or not recipe.data.query_prompt)
)
def test_toml_gives_the_recipe_back(recipe: Recipe) -> None:
    values = tomllib.loads(recipe.to_toml())
    assert recipes.from_values(values, "again") == recipe
    assert {key for table in values.values() for key in table} == {
        key for table in asdict(recipe).values() for key in table
    }


def test_every_field_is_documented() -> None:
    for kind in (Data, Model, Loss, Optim):
        for entry in fields(kind):
            assert f"    {entry.name}: " in (kind.__doc__ or ""), f"{kind.__name__}.{entry.name}"
