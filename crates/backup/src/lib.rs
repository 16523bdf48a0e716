//! Backups that have been restored: databases to a bucket and back, with proof at every step.
//!
//! ```text
//!  pg_dump ─► FIFO ─► tap ─► zstd ─► age ─► 8 MiB parts ─► volumes ─► manifest, signed, last
//!  (container)        rows             host key,            S3 or       = the backup exists
//!                     counted          recovery key         directory
//!
//!  volumes ─► age ─► zstd ─► tap ─► FIFO ─► pg_restore ─► side database ─► counts, schema ─► swap
//! ```
//!
//! Invariants, each a test:
//! - A backup is listed only if its signed manifest exists and every object it names is there with the named size.
//! - Nothing is ever overwritten; state is derived by listing.
//! - Live data is not changed by a restore until every check passed; then by one transaction.
//! - Retention never removes the newest verified, the two newest, what is held, what is younger than a day.
//! - Recovery needs the bucket, its credentials and the recovery key; with common tools alone ([`readme`]).
//! - Whatever dies at whatever moment: the [`journal`] knows what was under way and [`recover`] settles it.
//!
//! # What goes wrong elsewhere, and the test that would have caught it here
//!
//! | failure of other tools | test |
//! |---|---|
//! | an empty or cut dump is uploaded and called good | `nothing_is_no_backup`, `a_dump_that_fails_is_never_a_backup`, `no_shorter_stream_is_taken_for_a_whole_one` |
//! | a cut dump stays as the newest object | `faults_of_the_store_are_outlived_or_leave_nothing`, `kill` |
//! | client older or newer than the server | the server's own programs run in its container: `a_database_is_backed_up_drilled_swapped_back_and_undone`; `a_restore_that_brings_something_else_is_an_error_and_the_live_database_stays` for older servers |
//! | nobody ever restored | `a_database_is_backed_up_drilled_swapped_back_and_undone`, `data_of_every_kind_is_backed_up_drilled_and_restored` |
//! | the drill hangs and nobody knows | `data_of_every_kind_is_backed_up_drilled_and_restored` (its own ping) |
//! | a verification that proves nothing | `what_was_altered_dropped_copied_or_forged_is_refused`, `a_snapshot_that_was_cut_or_altered_is_told` |
//! | retention deletes good ones, or never deletes | `the_protected_ones_stay_whatever_the_history`, `a_year_of_daily_backups_becomes_days_weeks_and_months`, `what_looks_wrong_freezes_it` |
//! | part limits, unequal parts | `no_limit_of_any_store_is_met_however_large_the_content`, `content_without_a_server_has_the_same_protocol` |
//! | memory | `memory` |
//! | checksum headers that stores refuse | `a_store_that_knows_neither_checksums_nor_conditions_is_used_without`, `a_lax_store_with_versions_keeps_backups_as_well_and_is_swept` |
//! | an outage of the store ends the run | `an_outage_of_a_quarter_of_an_hour_is_outlived_and_one_of_an_hour_is_told`, `an_outage_in_the_middle_and_an_answer_that_never_comes_are_outlived` |
//! | a slow reader is cut | `a_reader_outlives_what_a_store_does_while_it_reads_and_takes_no_wrong_byte` |
//! | clocks and zones | `a_clock_that_was_ahead_stops_neither_the_schedule_nor_the_alarm`, `a_clock_that_is_wrong_stops_no_backup_and_removes_nothing`, `ids_sort_by_time_and_tell_it`, `a_zone_moves_with_its_summer_time_and_no_run_is_doubled_or_lost` |
//! | a restore says "complete" whatever happened, or harms what is live | `a_restore_that_brings_something_else_is_an_error_and_the_live_database_stays`, `a_database_of_all_types_comes_back_equal_by_swap_undo_and_drill` |
//! | lost with the host | `when_the_host_is_lost_place_and_recovery_key_are_enough`, `common_tools_alone_restore_it_as_the_page_in_the_bucket_says` |
//! | one database is taken for another | `no_database_is_mistaken_for_another_whose_name_begins_alike` |
//! | orphans of `docker exec` hold a snapshot | `kill`, `whatever_goes_wrong_no_bad_backup_is_listed_and_the_live_data_stays` |
//! | a dump or a drill hangs and nobody knows | `a_program_that_writes_nothing_more_and_does_not_end_is_given_up`, `silence_is_told_when_the_next_run_should_have_come_and_not_before` |
//! | data vanishes, and the empty backups push out the full ones | `whatever_goes_wrong_no_bad_backup_is_listed_and_the_live_data_stays` |
//! | a migration in the middle makes a dump that does not restore | `a_schema_or_role_that_changes_under_a_dump_makes_no_backup_that_would_not_restore` |
//! | a slow link holds the database's snapshot | `a_spool_lets_the_database_go_long_before_the_place_has_everything`, `a_spool_ends_with_its_backup_however_that_ends` |
//! | others' files are swept away, one's own never | `the_sweep_takes_what_is_old_and_ours_and_nothing_else` |
//!
//! Replication slots (which fill disks elsewhere) are not used: backups are logical.
//!
//! The library starts no clock and draws no chance of its own: both come in with [`backup::Outside`].

pub mod backup;
pub mod journal;
pub mod manifest;
pub mod names;
pub mod place;
pub mod postgres;
pub mod readme;
pub mod recover;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod seal;
pub mod sign;
pub mod spool;
pub mod store;
pub mod stream;
pub mod tap;
pub mod volumes;
