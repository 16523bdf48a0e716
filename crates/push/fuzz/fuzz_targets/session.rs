//! Frames are read without a panic however they are cut, and are written as they were read.
#![no_main]

use appliance_push::session::Frame;
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = Frame::decode(&mut buffer) {
        let mut again = BytesMut::from(&frame.encode()[..]);
        match Frame::decode(&mut again) {
            Ok(Some(same)) => assert_eq!(same, frame),
            // Frames without bytes are not sent at all.
            other => assert!(matches!(other, Ok(None)) && matches!(frame, Frame::Input(_) | Frame::Output(_) | Frame::Error(_))),
        }
    }
});
