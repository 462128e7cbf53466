use std::vec::Vec;

use super::*;

#[test]
fn every_index_runs_once() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap();
        assert_eq!(pool.threads().get(), threads);
        for round in 0..2000 {
            let n = round % 20;
            let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            pool.run(n, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} threads, {n} tasks");
        }
    }
}

#[test]
fn shares_of_threads_without_a_core_are_taken_over() {
    let pool = Pool::without_workers(4); // as if no worker ever ran
    for n in [2, 4, 9] {
        let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
        pool.run(n, &|i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{n} tasks");
    }
}

#[test]
fn the_caller_sleeps_until_a_slow_worker_is_done() {
    let pool = Pool::new(NonZeroUsize::new(2).unwrap()).unwrap();
    for _ in 0..3 {
        let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
        pool.run(2, &|i| {
            if i == 0 {
                while !begun.load(Ordering::Acquire) {
                    thread::yield_now(); // so that the worker takes its own share
                }
            } else {
                begun.store(true, Ordering::Release);
                thread::sleep(PATIENCE * 200); // longer than a busy machine keeps the caller waiting for a core
                done.store(true, Ordering::Release);
            }
        });
        assert!(done.into_inner());
    }
}

#[test]
fn nested_and_concurrent_rounds_do_their_own_work() {
    let pool = Pool::new(NonZeroUsize::new(3).unwrap()).unwrap();
    let sum = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.run(4, &|_| {
                        pool.run(5, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 2 * 200 * 4 * 10);
}

#[test]
fn workers_wake_after_sleep() {
    let pool = Pool::new(NonZeroUsize::new(3).unwrap()).unwrap();
    for _ in 0..5 {
        thread::sleep(PATIENCE * 4);
        let sum = AtomicUsize::new(0);
        pool.run(9, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 36);
    }
}
