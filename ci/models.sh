# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# The step `models` of ci.sh: models of other programs, and those programs with ours.

# Packages that write and read the fixtures. Their versions are part of the fixtures: a newer one
# names itself in them. Debian's torch is for the CPU alone: 160 MB with what it needs, where PyPI's
# has 3 GB.
models_packages=(transformers==4.46.3 tokenizers==0.20.3 safetensors==0.8.0 gguf==0.19.0 sentencepiece==0.2.3
    protobuf jinja2)

models() {
    local python=$target_dir/models/venv/bin/python fixtures=$target_dir/models/fixtures
    models_venv || { echo "models: skipped, Python's packages do not install here"; return "$skipped"; }
    rm -rf "$fixtures"
    "$python" tests/python/make_fixtures.py "$fixtures"
    # The archives of another torch have other bytes for the same weights, and another processor
    # rounds logits differently.
    if diff -rq --exclude='*.pt*' "$fixtures" tests/fixtures; then
        echo "fixtures: make_fixtures.py makes what is committed"
    else
        echo "fixtures: make_fixtures.py gives other bits on this machine"
    fi
    cargo build -p trainer --target-dir "$target_dir"
    rm -rf "$target_dir/models/exported"
    mkdir "$target_dir/models/exported"
    "$python" tests/python/check_export.py "$target_dir/debug/trainer" tests/fixtures "$target_dir/models/exported"
}

models_venv() {
    local venv=$target_dir/models/venv
    "$venv/bin/python" -c 'import torch, transformers, gguf, sentencepiece' 2>/dev/null && return
    /usr/bin/python3 -c 'import torch, ensurepip' 2>/dev/null || install python3-torch python3-venv || return
    /usr/bin/python3 -m venv --clear --system-site-packages "$venv" &&
        "$venv/bin/pip" install -q "${models_packages[@]}"
}
