# shellcheck shell=bash
# What scripts/test and scripts/soak share: install what is missing, run stages one
# after another, time them, and leave nothing behind. To be sourced, from the top folder.

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

job=            # process group of the running stage
failed=()       # names of stages that failed
timings=()      # "SECONDS NAME"
began=$SECONDS

# All temporary files go here, also those of programs that are killed. Root's
# PostgreSQL runs as the user postgres, who must get through.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/coditect-test.XXXXXX")
chmod 755 "$scratch"
export TMPDIR=$scratch

clean_up() {
  local try
  if [[ -n $job ]]; then
    # First in the way that lets programs clean up after themselves.
    kill -INT -- "-$job" 2>/dev/null || true
    for ((try = 0; try < 150; try++)); do
      kill -0 -- "-$job" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL -- "-$job" 2>/dev/null || true
  fi
  # A database server that is being killed may still write for a moment.
  for ((try = 0; try < 50; try++)); do
    rm -rf "$scratch" 2>/dev/null && return
    sleep 0.1
  done
  say "could not remove $scratch" >&2
}
trap clean_up EXIT
trap 'say "interrupted" >&2; exit 130' INT
trap 'say "terminated" >&2; exit 143' TERM HUP

# stage NAME COMMAND… runs a command in a process group of its own, so that one signal
# reaches all that it starts. A failed stage is remembered, and the next one runs.
stage() {
  local name=$1 start=$SECONDS code=0
  shift
  printf '\n── %s\n' "$name"
  set -m
  "$@" </dev/null &
  job=$!
  set +m
  wait "$job" || code=$?
  job=
  timings+=("$((SECONDS - start)) $name")
  if ((code != 0)); then
    failed+=("$name")
    say "$name: FAILED"
  fi
}

# finish prints the times and one clear line, and ends the script.
finish() {
  local t
  printf '\n'
  for t in "${timings[@]}"; do printf '%5d s  %s\n' "${t%% *}" "${t#* }"; done
  local total=$((SECONDS - began)) list
  if ((${#failed[@]})); then
    printf -v list '%s, ' "${failed[@]}"
    printf '\nFAILED: %s (after %d min %d s)\n' "${list%, }" $((total / 60)) $((total % 60))
    exit 1
  fi
  printf '\nPASSED: %s in %d min %d s\n' "$1" $((total / 60)) $((total % 60))
  exit 0
}

have_postgres() {
  local dir
  for dir in "$(dirname "$(command -v initdb || echo /nowhere/initdb)")" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin "$(pg_config --bindir 2>/dev/null || true)"; do
    [[ -x $dir/initdb && -x $dir/postgres && -x $dir/psql ]] && return 0
  done
  return 1
}

# need WHY PACKAGE… installs packages of the distribution.
need() {
  local why=$1 sudo=()
  shift
  command -v apt-get >/dev/null || die "$why, and this system has no apt-get: install the like of these Debian packages first: $*"
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "$why, and installing it needs root: run 'apt-get install $*' as root, then start again"
    sudo=(sudo)
  fi
  say "$why. Installing the packages $* (apt-get) …"
  if [[ $* == *postgresql* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
    # No cluster of the distribution's own: the tests start their own servers.
    "${sudo[@]}" mkdir -p /etc/postgresql-common
    printf 'create_main_cluster = false\n' | "${sudo[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold "$@" >/dev/null
}

# install_missing looks for everything the tests need beside Go modules. With all of it
# there, it needs no network.
install_missing() {
  command -v go >/dev/null || die "Go is not installed: https://go.dev/dl has it (1.21 or later fetches the version that go.mod names)"
  have_postgres || need "The tests run on real servers, and PostgreSQL is not installed" postgresql postgresql-client
  have_postgres || die "the packages are installed, but no server programs were found in /usr/lib/postgresql"
  if ! command -v "$(go env CC)" >/dev/null || ! command -v gcc >/dev/null; then
    need "The race detector and the model checker need a C compiler, and there is none" gcc libc6-dev
  fi
  command -v spin >/dev/null || need "The migration protocol is checked as a model, and the model checker SPIN is not installed" spin
  have_pgbouncer || need_pgbouncer
}

have_pgbouncer() { command -v pgbouncer >/dev/null || [[ -x /usr/sbin/pgbouncer ]]; }

# need_pgbouncer installs PgBouncer without a service of the distribution's own: the tests start theirs.
need_pgbouncer() {
  local sudo=()
  ((EUID == 0)) || sudo=(sudo)
  need "Tenants move while a connection pooler stands in front, and PgBouncer is not installed" pgbouncer
  if [[ -d /run/systemd/system ]]; then "${sudo[@]}" systemctl disable --now --quiet pgbouncer; fi
}

# build_emulator builds the Cloud Tasks emulator that the tests of queues start.
build_emulator() {
  go build -C scripts/tools/cloud-tasks-emulator -trimpath -o "$PWD/.bin/cloud-tasks-emulator" github.com/aertje/cloud-tasks-emulator
}
