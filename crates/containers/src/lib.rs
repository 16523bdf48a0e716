//! The Docker adapter: containers, images, networks, events.
