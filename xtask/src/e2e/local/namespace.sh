# The first process in the namespaces of a local cluster: hides what the cluster would write to,
# brings the loopback up, and runs the tests. When it ends, everything in the namespaces ends.
# Arguments: the name of the host, the folders to hide, the folder of the cluster, then the command.
# The command finds the id that this process has outside in FIRST_PROCESS.
set -e
# As long as /proc is that of the outside, this process has its outer id there.
read -r FIRST_PROCESS rest </proc/self/stat
export FIRST_PROCESS
mount -t proc -o nosuid,nodev,noexec proc /proc
mount --make-rshared /
for folder in $2 "$3"; do
    mount -t tmpfs tmpfs "$folder"
done
mount --make-rshared "$3"
hostname "$1"
shift 3
ip link set lo up
status=0
"$@" || status=$?
exit "$status"
