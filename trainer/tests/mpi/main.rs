//! Trains with several processes, as mpirun starts them, on a tiny model.

#[cfg(feature = "mpi")]
mod failures;
#[cfg(feature = "mpi")]
mod same;
#[cfg(feature = "mpi")]
mod scene;

#[cfg(not(feature = "mpi"))]
mod without {
    use std::process::Command;

    #[test]
    fn several_processes() {
        tests::shared::skip("several processes need a trainer with the feature mpi");
    }

    /// Every process would train the same model into the same folder.
    #[test]
    fn a_trainer_without_the_feature_refuses_mpirun() {
        let program = env!("CARGO_BIN_EXE_trainer");
        for (rank, says) in [("0", "mpirun has started 2 processes"), ("1", "")] {
            let mut command = Command::new(program);
            command.envs([("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", rank)]);
            let output = command.output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(stderr.contains(says) && stderr.lines().count() == usize::from(rank == "0"), "{stderr}");
            assert!(output.stdout.is_empty());
        }
    }
}
