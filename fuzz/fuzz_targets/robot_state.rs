// SPDX-License-Identifier: MPL-2.0

//! The retained state, as a bridge reads it from a broker that anybody may have written to.
#![no_main]

use droidrelay_wire::RobotState;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    if let Ok(state) = serde_json::from_slice::<RobotState>(payload) {
        let written = serde_json::to_vec(&state).unwrap();
        let again: RobotState = serde_json::from_slice(&written).unwrap();
        assert_eq!(again.state, state.state);
        assert_eq!(again.viewers, state.viewers);
        assert_eq!(again.last_error, state.last_error);
        assert!(again.more.keys().eq(state.more.keys()));
    }
});
