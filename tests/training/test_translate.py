"""Back-translation, against a stand-in for argostranslate that has its interface."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from llmindex.errors import MissingPackage, ModelError
from llmindex_training.translate import BackTranslator


class _Language:
    """As argostranslate's: knows the languages that there is a model to."""

    def __init__(self, code: str, targets: set[str]) -> None:
        self.code = code
        self._targets = targets

    def get_translation(self, other: "_Language") -> SimpleNamespace | None:
        if other.code not in self._targets:
            return None
        return SimpleNamespace(translate=lambda text: f"{other.code}({text})")


def install(monkeypatch: pytest.MonkeyPatch, models: dict[str, set[str]]) -> None:
    module = ModuleType("argostranslate.translate")
    languages = [_Language(code, targets) for code, targets in models.items()]
    module.get_installed_languages = lambda: languages  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "argostranslate", ModuleType("argostranslate"))
    monkeypatch.setitem(sys.modules, "argostranslate.translate", module)


def test_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"en": {"de"}, "de": {"en"}})
    assert BackTranslator("en", "de")("text") == "en(de(text))"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "argostranslate", None)
    monkeypatch.delitem(sys.modules, "argostranslate.translate", raising=False)
    with pytest.raises(MissingPackage, match=r"pip install argostranslate"):
        BackTranslator("en", "de")


@pytest.mark.parametrize(
    ("models", "missing"),
    [
        ({}, "en_de"),
        ({"en": set(), "de": {"en"}}, "en_de"),
        ({"en": {"de"}, "de": set()}, "de_en"),
        ({"en": {"fr"}, "fr": {"en"}}, "en_de"),
    ],
)
def test_a_missing_model_is_named_with_its_command(
    models: dict[str, set[str]], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, models)
    with pytest.raises(ModelError, match=f"argospm install translate-{missing}"):
        BackTranslator("en", "de")


def test_a_failure_of_the_engine_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"en": {"de"}, "de": {"en"}})
    translator = BackTranslator("en", "de")

    def fail(text: str) -> str:
        raise RuntimeError("broken\nengine")

    monkeypatch.setattr(translator, "_there", SimpleNamespace(translate=fail))
    with pytest.raises(ModelError, match="en -> de -> en: broken engine"):
        translator("text")


def test_a_language_is_no_pivot_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="--pivot"):
        BackTranslator("en", "en")
