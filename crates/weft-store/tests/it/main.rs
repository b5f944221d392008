//! The stores under one suite, against a model, and under crashes, full disks and damage.

mod conforms;
mod crash;
mod disk;
mod file;
mod full;
mod group;
mod model;
