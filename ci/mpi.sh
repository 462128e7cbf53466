# shellcheck shell=bash disable=SC2154 # variables of ci.sh, which sources this
# Several processes: the trainer with the feature `mpi`, over Open MPI.

mpi() {
    need mpirun openmpi-bin
    need mpicc libopenmpi-dev
    # The bindings are made of mpi.h with libclang.
    ldconfig -p | grep -q libclang || find /usr/lib -name 'libclang*.so*' | grep -q . || install libclang-dev
    # The tests compare curves of a tiny model: unoptimised, it compiles in a tenth of the time. The
    # feature alone has dependencies compiled anew, so no lints here: they would do so once more.
    local fast=(--config profile.dev.package.trainer.opt-level=0)
    cargo test -p trainer --features mpi --test mpi "${fast[@]}"
}
