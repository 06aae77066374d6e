
# From here on the same for every job. Above: `record` (the job's directory, of an array the task's), `restarts`, and
# `task`, which srun starts.
#
# USR1 is SLURM's warning that the time ends, and reaches this shell alone. It goes on through srun to every rank; TERM
# would have srun kill them. They save and end, and the job is put back into the queue. TERM comes from scancel, or
# from SLURM where it preempts the job and queues it again by itself: a cancelled job that is requeued would come back.
set -u
requeue=75                                                    # infra.preemption.REQUEUE
array=${SLURM_ARRAY_JOB_ID:-}
me=${array:+${array}_$SLURM_ARRAY_TASK_ID}                    # one task's SLURM_JOB_ID is that of all of them
me=${me:-$SLURM_JOB_ID}
export MASTER_ADDR MASTER_PORT
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))                 # of its own, where jobs share a node
rm -f "$record/exit"
asked= step=
stop() {
    asked=$1
    echo "$(date '+%F %T') $1: the job saves and ends"
    [ -z "$step" ] || kill -USR1 "$step"
}
trap 'stop USR1' USR1
trap 'stop USR2' USR2
trap 'stop TERM' TERM

# from 22.05 to 23.02 srun does not take --cpus-per-task from the job
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "${task[@]}" &
step=$!
[ -z "$asked" ] || kill -USR1 "$step"                         # it came while there was no step
while kill -0 "$step" 2>/dev/null; do wait "$step"; done      # a signal ends `wait`, not the step
wait "$step"
code=$?

# Ranks that saved end with 0, so that srun does not kill those that are still saving; rank 0, or the first that failed,
# has written how the job ended.
said=$(cat "$record/exit" 2>/dev/null)
case $said in
"" | 0 | "$requeue") [ "$code" -ne 0 ] || code=${said:-1} ;;  # srun knows of ranks that were killed
*) code=$said ;;
esac
if [ "$code" -gt 128 ] && [ "$asked" != "" ]; then code=$requeue; fi     # told to stop before it could listen
echo "$code" > "$record/exit.tmp" && mv "$record/exit.tmp" "$record/exit"
again=
case $code in
0 | 2) ;;                                                     # done, or the user's to mend
"$requeue") again=yes ;;
*)
    echo "$code" >> "$record/failures"
    [ "$(wc -l < "$record/failures")" -gt "$restarts" ] || again=yes
    ;;
esac
if [ "$array" != "" ] && [ "$code" -eq 1 ]; then again=; fi   # trials have failed, as often as they may
if [ "$again" != "" ] && [ "$asked" != TERM ]; then scontrol requeue "$me"; fi
exit "$code"
