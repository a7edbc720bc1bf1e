#!/usr/bin/env bash
# A real one-machine SLURM (munged, mariadbd, slurmdbd, slurmctld, slurmd) on 127.0.0.1: no systemd, no root needed.
# Everything that it writes is under one folder. Partitions: local, and high, whose jobs take the place of others.
#   slurm_local.sh install         the packages, where this user may (Debian, Ubuntu, as root); else says why not
#   slurm_local.sh run  CMD...     start, run CMD with SLURM_CONF set, stop; exits with CMD's status
#   slurm_local.sh start|stop|status|env
# Environment: SLURM_LOCAL_DIR, SLURM_LOCAL_PORT (14 ports from it), SLURM_LOCAL_CPUS, SLURM_LOCAL_MEM (MB),
#   SLURM_LOCAL_NODES, SLURM_LOCAL_GPUS (fake ones), SLURM_LOCAL_DBD=0 (no accounts: no sacct)
set -euo pipefail
cmd=${1:-}; shift || true
D=${SLURM_LOCAL_DIR:-/tmp/slurm_local.$(id -u)}
PORT=${SLURM_LOCAL_PORT:-26817}; CPUS=${SLURM_LOCAL_CPUS:-$(env -u OMP_NUM_THREADS nproc)}; NODES=${SLURM_LOCAL_NODES:-1}
GPUS=${SLURM_LOCAL_GPUS:-0}; DBD=${SLURM_LOCAL_DBD:-1}; ME=$(id -un); H=$(hostname -s)
MEM=${SLURM_LOCAL_MEM:-$(awk -v n="$NODES" '/MemAvailable/{print int($2/1024*0.8/n)}' /proc/meminfo)}
export PATH=$PATH:/usr/sbin:/sbin SLURM_CONF=$D/etc/slurm.conf
# a caller that is itself inside a SLURM job, or has site defaults, must not leak into ours
while read -r v; do unset "$v"; done < <(compgen -e | grep -E '^(SLURM_(JOB|STEP|MEM|NTASKS|NNODES|CPUS|ARRAY|NODE|TASKS|EXPORT)|SBATCH_|SRUN_|SALLOC_)' || true)

PDEATH=()   # `run` fills it: the daemons get TERM even when this script is killed with -9
alive() { local p; p=$(cat "$D/run/$1.mypid" 2>/dev/null) && kill -0 "$p" 2>/dev/null; }
wait_for() { # seconds daemon cmd...: until cmd succeeds; fails at the deadline or when the daemon has died
  local end=$((SECONDS + $1)) d=$2; shift 2
  while ((SECONDS < end)) && alive "$d"; do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
  echo "slurm_local: $d: dead or not ready: $*" >&2; return 1
}
port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
nodes_up() { [ "$(timeout 5 sinfo -h -N -p local -t idle,mixed,allocated -o %N | wc -l)" = "$NODES" ]; }
daemon() { # name cmd...   (own session, so that a ^C or a group kill of the caller leaves a clean stop to us)
  local n=$1; shift
  setsid "${PDEATH[@]}" "$@" >"$D/log/$n.out" 2>&1 </dev/null &
  echo $! >"$D/run/$n.mypid"
}
node() { if [ "$NODES" = 1 ]; then echo "$H"; else echo "n$1"; fi; }  # one node: its real, resolvable name
write_conf() {
  umask 022
  mkdir -p "$D"/{etc,state,spool,log,run}; chmod 755 "$D" "$D"/{etc,state,spool,log,run}
  mkdir -p "$D/munge"; chmod 700 "$D/munge"
  [ -s "$D/munge/key" ] || (umask 077; head -c 128 /dev/urandom >"$D/munge/key")
  local acct=AccountingStorageType=accounting_storage/none gres="" nodegres="" nodeline="" i
  if [ "$DBD" = 1 ]; then
    acct="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 2))
AccountingStoragePass=$D/run/munge.socket"
    rm -f "$D/etc/slurmdbd.conf"   # must be mode 600 and owned by SlurmUser
    (umask 077; cat >"$D/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$D/run/munge.socket
DbdHost=$H
DbdAddr=127.0.0.1
DbdPort=$((PORT + 2))
SlurmUser=$ME
CommunicationParameters=NoInAddrAny
LogFile=$D/log/slurmdbd.log
PidFile=$D/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 3))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
CONF
    )
  fi
  rm -f "$D/etc/gres.conf"
  if [ "$GPUS" -gt 0 ]; then
    gres=GresTypes=gpu nodegres=Gres=gpu:$GPUS
    for ((i = 0; i < GPUS; i++)); do : >"$D/run/nvidia$i"; done   # a gpu needs a File; any file will do
    echo "AutoDetect=off"$'\n'"Name=gpu Count=$GPUS File=$D/run/nvidia[0-$((GPUS - 1))]" >"$D/etc/gres.conf"
  fi
  for ((i = 1; i <= NODES; i++)); do
    nodeline+="NodeName=$(node $i) NodeHostname=$H NodeAddr=127.0.0.1 Port=$((PORT + 10 + i)) CPUs=$CPUS RealMemory=$MEM $nodegres State=UNKNOWN"$'\n'
  done
  cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
AuthInfo=socket=$D/run/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=256
MinJobAge=3600
KillWait=5
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
$acct
$gres
${nodeline}PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 GraceTime=20 State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
CONF
}
missing() { # the commands that are not there
  local p all="munged slurmctld slurmd sbatch setsid"
  [ "$DBD" = 0 ] || all="$all slurmdbd mariadbd"
  for p in $all; do command -v "$p" >/dev/null || echo "$p"; done
}
install() {
  local lacking packages="slurm-wlm munge slurmdbd mariadb-server-core mariadb-client-core"
  lacking=$(missing | xargs); [ -n "$lacking" ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "slurm_local: no $lacking here, and only root can install them with apt-get: $packages" >&2; return 3
  fi
  if ! { timeout 120 apt-get update && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y --no-install-recommends $packages; } >/tmp/slurm_local.apt.log 2>&1; then
    echo "slurm_local: no $lacking here, and they cannot be installed: $(tail -n 1 /tmp/slurm_local.apt.log)" >&2; return 3
  fi
  lacking=$(missing | xargs); [ -z "$lacking" ] || { echo "slurm_local: no $lacking after installing $packages" >&2; return 3; }
}
start() {
  install || return 3
  if port_open "$PORT"; then echo "slurm_local: port $PORT is taken" >&2; return 4; fi
  write_conf
  daemon munged munged -F -S "$D/run/munge.socket" --key-file="$D/munge/key" --pid-file="$D/munge/pid" \
    --log-file="$D/munge/log" --seed-file="$D/munge/seed" --force
  wait_for 15 munged munge -n -S "$D/run/munge.socket" || return 1
  if [ "$DBD" = 1 ]; then
    local u=(); [ "$(id -u)" = 0 ] && u=(--user=root)
    [ -d "$D/db/mysql" ] || mariadb-install-db --no-defaults "${u[@]}" --datadir="$D/db" --skip-test-db \
      --auth-root-authentication-method=normal --innodb-log-file-size=8M >"$D/log/mariadb-install.out" 2>&1
    cat >"$D/etc/init.sql" <<SQL
CREATE DATABASE IF NOT EXISTS slurm_acct;
CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1';
SQL
    daemon mariadbd mariadbd --no-defaults "${u[@]}" --datadir="$D/db" --socket="$D/run/mariadb.sock" \
      --pid-file="$D/run/mariadb.pid" --bind-address=127.0.0.1 --port=$((PORT + 3)) --skip-name-resolve \
      --init-file="$D/etc/init.sql" --innodb-buffer-pool-size=32M --innodb-log-file-size=8M \
      --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 --performance-schema=OFF
    wait_for 60 mariadbd port_open $((PORT + 3)) || return 1
    daemon slurmdbd slurmdbd -D
    wait_for 60 slurmdbd port_open $((PORT + 2)) || return 1
    wait_for 30 slurmdbd timeout 5 sacctmgr -n list cluster || return 1
    sacctmgr -i add cluster local >/dev/null 2>&1 || true   # before slurmctld, else its first jobs are not accounted
  fi
  daemon slurmctld slurmctld -D -i -f "$SLURM_CONF"
  local i; for ((i = 1; i <= NODES; i++)); do mkdir -p "$D/spool/$(node $i)"; daemon "slurmd-n$i" slurmd -D -N "$(node $i)" -f "$SLURM_CONF"; done
  wait_for 60 slurmctld nodes_up || return 1
}
stop() {
  local n p f
  if alive slurmctld; then
    timeout 10 scancel -u "$ME" 2>/dev/null || true
    for _ in $(seq 80); do alive slurmctld && [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break; sleep 0.1; done
  fi
  for n in $(cd "$D/run" 2>/dev/null && ls | grep -E '^slurmd-n[0-9]+\.mypid$' | sed 's/\.mypid//') slurmctld slurmdbd mariadbd munged; do
    f=$D/run/$n.mypid; [ -s "$f" ] || continue; p=$(cat "$f"); rm -f "$f"
    kill "$p" 2>/dev/null || continue
    for _ in $(seq 100); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$p" 2>/dev/null || true
  done
}
logs() { for f in "$D"/log/*.out; do echo "== $f" >&2; tail -n 8 "$f" >&2; done; }
case $cmd in
  install) install ;;
  start) start || { rc=$?; [ $rc = 3 ] || [ $rc = 4 ] || { logs; stop; }; exit $rc; }; sinfo -N -l; echo "export SLURM_CONF=$SLURM_CONF" ;;
  stop) stop ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  status) sinfo -N -l; squeue ;;
  run)
    own=""; [ -n "${SLURM_LOCAL_DIR:-}" ] || { D=$(mktemp -d /tmp/slurm_local.XXXXXX); own=$D; export SLURM_CONF=$D/etc/slurm.conf; }
    trap 'stop; [ -z "$own" ] || rm -rf "$own"' EXIT; c=""; trap '[ -z "$c" ] || kill "$c" 2>/dev/null || true; exit 130' INT; trap '[ -z "$c" ] || kill "$c" 2>/dev/null || true; exit 143' TERM
    command -v setpriv >/dev/null && PDEATH=(setpriv --pdeathsig TERM)
    start || { rc=$?; logs; exit $rc; }
    rc=0; "$@" <&0 & c=$!; wait "$c" || rc=$?; c=""; [ $rc = 0 ] || [ -z "${SLURM_LOCAL_VERBOSE:-}" ] || logs; exit $rc ;;
  *) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac
