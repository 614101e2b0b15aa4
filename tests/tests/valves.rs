//! Many valves in one process.

use droidrelay_tests::{
    bench::{
        usage::threads,
        valves::{Fleet, Topics},
    },
    journal::DEADLINE,
    process::poll,
};

/// gst-launch-1.0, GLib's worker, the camera, the one for the network, and those that GLib's pool
/// keeps; what more comes up for the work of a moment ends with it.
const THREADS: usize = 4 + 2;

#[test]
fn a_hundred_valves_need_no_more_threads_than_one_and_each_obeys() {
    for (count, topics) in [(1, Topics::Own), (100, Topics::Own), (100, Topics::Same)] {
        let mut fleet = Fleet::start(count, topics, &[]).unwrap();
        fleet.open().unwrap();
        let now = || threads(fleet.robot.id()).unwrap();
        let few = poll(DEADLINE, || (now() <= THREADS).then_some(()));
        assert!(few.is_some(), "{count}, {topics:?}: {} threads", now());
        fleet.robot.end().unwrap();
    }
}
