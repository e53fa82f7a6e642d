#!/usr/bin/env bash
# Puts a real Kubernetes control plane for the tests on this machine, once: kube-apiserver, kube-controller-manager,
# kube-scheduler, kubectl and etcd, and redis-server.
#
# Where KUBEBUILDER_ASSETS names a folder with all four of Kubernetes' programs, that one is used. Otherwise Kubernetes is built from Debian's own
# source package (1.20; some seven minutes on two cores) and kept in $LLAMERO_CACHE/control-plane. Nothing happens when it is there already.
# Prints the folder of the binaries.
set -euo pipefail
cache=${LLAMERO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/llamero}
home=$cache/control-plane
components=(kube-apiserver kube-controller-manager kube-scheduler kubectl)

say() { printf '%s\n' "$*" >&2; }

apt() {
  command -v apt-get >/dev/null || { say "llamero's cluster tests need $* and this machine has no apt-get: install it by hand."; exit 1; }
  local root=()
  [ "$(id -u)" = 0 ] || root=(sudo)
  say "Installing $* with apt-get ..."
  "${root[@]}" apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
}

install_servers() {
  # Debian starts a packaged server at once; the tests start their own, on ports of their own.
  command -v redis-server >/dev/null || RUNLEVEL=1 apt redis-server
  command -v etcd >/dev/null || [ -x "${KUBEBUILDER_ASSETS:-/nonexistent}/etcd" ] || RUNLEVEL=1 apt etcd-server
}

fetch_source() {
  local suite key lists=$home/apt
  suite=bookworm  # the release that carries Kubernetes 1.20
  key=/usr/share/keyrings/debian-archive-keyring.gpg
  mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial" "$home/source"
  # A list of our own beside the machine's, so that the machine's sources stay as they are; same mirror.
  local mirror
  mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
  [ -n "$mirror" ] || mirror=$(awk '$1=="deb"{for(i=2;i<=NF;i++) if($i ~ /:\/\//){print $i; exit}}' /etc/apt/sources.list)
  printf 'deb-src [signed-by=%s] %s %s main\n' "$key" "$mirror" "$suite" > "$lists/sources.list"
  local options=(-oDir::Etc::sourcelist="$lists/sources.list" -oDir::Etc::sourceparts=/dev/null
    -oDir::State::Lists="$lists/lists" -oDir::Cache="$lists/cache" -oAPT::Sandbox::User=root)
  apt-get "${options[@]}" update -qq >&2
  (cd "$home/source" && apt-get "${options[@]}" source --download-only -qq kubernetes >&2 && tar xzf kubernetes_*.orig.tar.gz)
}

build() {
  dpkg -s golang-go golang-github-modern-go-reflect2-dev >/dev/null 2>&1 || apt golang-go golang-github-modern-go-reflect2-dev
  rm -rf "$home/source" "$home/gopath"
  fetch_source
  export GOPATH=$home/gopath GO111MODULE=off CGO_ENABLED=0 GOFLAGS='' GOCACHE=$home/go-cache
  local tree=$GOPATH/src/k8s.io/kubernetes generated violations=$home/openapi-violations.txt
  mkdir -p "$home/bin" "$GOPATH/src/k8s.io"
  mv "$home"/source/kubernetes-1.20.* "$tree"
  cd "$tree"
  # The vendored reflect2 1.0.1 crashes the server under Go >= 1.18; Debian's 1.0.2 does not.
  rm -rf vendor/github.com/modern-go/reflect2
  cp -rL /usr/share/gocode/src/github.com/modern-go/reflect2 vendor/github.com/modern-go/
  # The one generated file that the source package leaves out.
  go build -o "$home/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  generated=$(grep -rl --include='*.go' -E '^// \+k8s:openapi-gen=' pkg staging/src/k8s.io | xargs -n1 dirname | sort -u \
    | grep -v -E 'testdata|/testing|sample-|code-generator' \
    | sed -E 's#^staging/src/#k8s.io/kubernetes/vendor/#; s#^pkg#k8s.io/kubernetes/pkg#' | paste -sd,)
  "$home/openapi-gen" --logtostderr --go-header-file hack/boilerplate/boilerplate.generatego.txt --output-file-base zz_generated.openapi \
    --output-package k8s.io/kubernetes/pkg/generated/openapi --input-dirs "$generated" --report-filename "$violations"
  local vendor=k8s.io/kubernetes/vendor/k8s.io version=v1.20.2 component
  local flags="-s -w -X $vendor/component-base/version.gitVersion=$version -X $vendor/client-go/pkg/version.gitVersion=$version"
  flags+=" -X $vendor/component-base/version.gitMajor=1 -X $vendor/component-base/version.gitMinor=20"
  for component in "${components[@]}"; do
    say "Building $component ..."
    go build -ldflags "$flags" -o "$home/bin/$component.new" "./cmd/$component"
    mv "$home/bin/$component.new" "$home/bin/$component"
  done
  chmod -R u+w "$home/source" "$home/gopath" "$home/go-cache"
  rm -rf "$home/source" "$home/gopath" "$home/go-cache" "$home/openapi-gen"
}

# Whether the folder has everything; envtest's has no controllers and no scheduler, and without them no Job has pods.
has_all() {
  local component
  for component in "${components[@]}"; do [ -x "$1/$component" ] || return 1; done
}

install_servers
if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
  if has_all "$KUBEBUILDER_ASSETS"; then
    echo "$KUBEBUILDER_ASSETS"
    exit 0
  fi
  say "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks one of ${components[*]}: not used."
fi
if ! has_all "$home/bin"; then
  mkdir -p "$home"
  exec 9>"$home/lock"
  flock 9
  if ! has_all "$home/bin"; then
    say "Building a Kubernetes control plane into $home (once a machine, some seven minutes) ..."
    build
  fi
fi
echo "$home/bin"
