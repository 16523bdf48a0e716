//! Throw-away hosts in local containers, and the images they are made of.
