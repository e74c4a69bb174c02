#!/usr/bin/env bash
# The demonstration, called by `make demo`: from the standard library's docstrings to answers and a map, into demo/.
# Run again, it goes on with what is there. Usage: scripts/demo.sh [folder with llmindex and python]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${1:-.venv/bin}
PATH="$(cd "$bin" && pwd):$PATH"
export LLMINDEX_NO_DAEMON=1  # three searches are no reason to leave a process behind
start=$SECONDS

say() { printf '\n== %s\n' "$*"; }

run() {  # print a command as one would type it, then run it
  local line="" word
  for word in "$@"; do
    case $word in *[!A-Za-z0-9_./=-]*) word="\"$word\"" ;; esac
    line+=" $word"
  done
  printf '$%s\n' "$line"
  "$@"
}

mkdir -p demo
echo "The commands below are those of $bin."
say "1. A corpus: docstrings of the Python standard library on this machine"
if [ -e demo/stdlib.parquet ]; then
  echo "demo/stdlib.parquet is there already."
else
  run python scripts/stdlib_corpus.py -o demo/stdlib.parquet --limit 2000
fi

say "2. An index: the model turns each docstring into a vector (a few minutes on a laptop)"
run llmindex build demo/stdlib.parquet -o demo/stdlib.llmindex --max-tokens 64

say "3. Three searches, by meaning"
for query in "find text that matches a pattern" "run several tasks at the same time" "open a web page in the browser"; do
  run llmindex search "$query" -i demo/stdlib.llmindex -k 3
done

say "4. Clusters, with keywords and a map"
run llmindex cluster -i demo/stdlib.llmindex --plot demo/map.html --plot demo/map.png

seconds=$((SECONDS - start))
cat <<END

== Done in $((seconds / 60)) min $((seconds % 60)) s
  demo/stdlib.parquet    the corpus: id, module, name, kind, text
  demo/stdlib.llmindex   the index: texts and vectors (Parquet), nearest neighbours (FAISS), clusters
  demo/map.html          the map, to explore in a browser; demo/map.png is a picture of it

Nothing left this machine: the model (SmolLM2-135M-Instruct) came with the set-up.
Ask something else:   $bin/llmindex search -i demo/stdlib.llmindex "compress data"
Index your own file:  $bin/llmindex build your.parquet   (.jsonl, .csv, a folder of .md and .txt)
END
