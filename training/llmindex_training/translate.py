"""Positives by back-translation: into a pivot language and back, with the open models of argostranslate.

argostranslate is an extra, and its models are packages of their own, one for each direction; both are looked for
before any work is done, and what is missing is named together with the command that installs it.
"""

import importlib
from typing import Any

from llmindex.errors import MissingPackage, ModelError

INSTALL = "pip install argostranslate"


class BackTranslator:
    """Translates a text into the pivot language and back."""

    def __init__(self, language: str, pivot: str) -> None:
        """Find the models of both directions.

        Args:
            language: code of the corpus's language: "en".
            pivot: code of the language to go through: "de".

        Raises:
            MissingPackage: argostranslate is not installed.
            ModelError: it has no model for one of the directions, or cannot load it.
        """
        if language == pivot:
            raise ModelError(f'cannot translate from "{language}" through "{pivot}": choose another --pivot')
        try:
            # By name: the extra need not be there for anything else, type checks included.
            argos = importlib.import_module("argostranslate.translate")
        except ImportError as error:
            raise MissingPackage(f"back-translation needs argostranslate: {INSTALL}") from error
        installed = {known.code: known for known in argos.get_installed_languages()}
        self._there = _translation(installed, language, pivot)
        self._back = _translation(installed, pivot, language)
        self._direction = f"{language} -> {pivot} -> {language}"

    def __call__(self, text: str) -> str:
        """The text after both translations.

        Raises:
            ModelError: argostranslate failed.
        """
        try:
            return str(self._back.translate(self._there.translate(text)))
        except Exception as error:  # whatever the engines below raise
            said = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"argostranslate failed on {self._direction}: {said[:200]}") from error


def _translation(installed: dict[str, Any], source: str, target: str) -> Any:  # noqa: ANN401
    found = installed[source].get_translation(installed[target]) if {source, target} <= installed.keys() else None
    if found is None:
        raise ModelError(
            f"argostranslate has no model from {source} to {target}; get it with "
            f"`argospm update && argospm install translate-{source}_{target}`"
        )
    return found
