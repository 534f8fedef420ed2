#!/bin/sh
# rustc for the crates of this workspace with what libFuzzer is guided by, and with the checks that a release leaves out: an overflow that
# would wrap is a finding. `cargo xtask fuzz` sets it as RUSTC_WORKSPACE_WRAPPER; what else is built is that of a release.
case " $* " in
    *" --crate-name build_script_"* | *" --crate-type proc-macro "*) exec "$@" ;;
    *" --crate-name qfw_"*) ;;
    *) exec "$@" ;;
esac
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=on -Coverflow-checks=on
