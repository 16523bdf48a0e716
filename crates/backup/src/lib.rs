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
//! | | failure of other tools | test |
//! |---|---|---|
//! | 1 | an empty or cut dump is uploaded and called good | `nothing_is_no_backup`, `a_dump_that_fails_is_never_a_backup`, `no_shorter_stream_is_taken_for_a_whole_one`, `a_full_disk_is_said_and_leaves_nothing` |
//! | 2 | a cut dump stays as the newest object | `every_fault_while_it_is_stored_is_outlived_or_leaves_nothing`, `kill` |
//! | 3 | a client older than the server: no backups for weeks | the server's own programs run in its container: `a_database_is_backed_up_drilled_swapped_back_and_undone` |
//! | 4 | a client newer than the server: no restore | the same, and `a_restore_that_brings_something_else_is_an_error_and_the_live_database_stays` for servers that are older |
//! | 5 | nobody ever restored | `a_database_is_backed_up_drilled_swapped_back_and_undone`, `data_of_every_kind_is_backed_up_drilled_and_restored` |
//! | 6 | a dump or a drill hangs and nobody knows | `a_program_that_writes_nothing_more_and_does_not_end_is_given_up`, `silence_is_told_when_the_next_run_should_have_come_and_not_before`, `data_of_every_kind_is_backed_up_drilled_and_restored` (its own ping) |
//! | 7 | a verification that proves nothing | `what_was_altered_dropped_copied_or_forged_is_refused`, `nothing_altered_or_replayed_reaches_live_data`, `a_snapshot_that_was_cut_or_altered_is_told` |
//! | 8 | retention deletes good ones | `the_protected_ones_stay_whatever_the_history`, `what_looks_wrong_freezes_it`, `the_sweep_takes_what_is_old_and_ours_and_nothing_else`, `no_database_is_mistaken_for_another_whose_name_begins_alike` |
//! | 9 | retention never deletes | `a_year_of_daily_backups_becomes_days_weeks_and_months`, `every_fault_while_it_is_removed_is_outlived_or_made_good_at_the_next_start` |
//! | 10 | part limits | `no_limit_of_any_store_is_met_however_large_the_content` |
//! | 11 | unequal parts | `no_limit_of_any_store_is_met_however_large_the_content`, `content_without_a_server_has_the_same_protocol` |
//! | 12 | memory | `memory` |
//! | 13 | checksum headers that stores refuse | `a_store_that_knows_neither_checksums_nor_conditions_is_used_without`, `a_lax_store_with_versions_keeps_backups_as_well_and_is_swept` |
//! | 14 | an outage of the store ends the run | `an_outage_of_a_quarter_of_an_hour_is_outlived_and_one_of_an_hour_is_told`, `every_fault_while_it_is_stored_is_outlived_or_leaves_nothing`, `the_same_faults_before_a_lax_store` |
//! | 15 | a slow reader is cut | `a_reader_outlives_what_a_store_does_while_it_reads_and_takes_no_wrong_byte`, `every_fault_while_a_database_is_stored_restored_or_drilled_leaves_live_data_as_it_is` |
//! | 16 | a replication slot fills the disk | none is used: backups are logical |
//! | 17 | clocks and zones | `a_clock_that_was_ahead_stops_neither_the_schedule_nor_the_alarm`, `a_clock_that_is_wrong_stops_no_backup_and_removes_nothing`, `ids_sort_by_time_and_tell_it`, `a_zone_moves_with_its_summer_time_and_no_run_is_doubled_or_lost` |
//! | 18 | a restore says "complete" whatever happened | `a_restore_that_brings_something_else_is_an_error_and_the_live_database_stays`, `a_database_of_all_types_comes_back_equal_by_swap_undo_and_drill` |
//! | 19 | a restore harms what is live | `a_restore_that_brings_something_else_is_an_error_and_the_live_database_stays`, `a_dump_that_fails_is_never_a_backup` (its restores), `kill` |
//! | 20 | lost with the host | `when_the_host_is_lost_place_and_recovery_key_are_enough`, `common_tools_alone_restore_it_as_the_page_in_the_bucket_says` |
//! | 21 | `docker exec` eats data or leaves orphans that hold a snapshot | `no_shorter_stream_is_taken_for_a_whole_one`, `kill`, `whatever_goes_wrong_no_bad_backup_is_listed_and_the_live_data_stays` |
//! | | data vanishes, and the empty backups push out the full ones | `whatever_goes_wrong_no_bad_backup_is_listed_and_the_live_data_stays`, `an_emptied_backup_does_not_push_out_the_full_one_of_its_week` |
//! | | a migration in the middle makes a dump that does not restore | `a_schema_or_role_that_changes_under_a_dump_makes_no_backup_that_would_not_restore` |
//! | | a slow link holds the database's snapshot | `a_spool_lets_the_database_go_long_before_the_place_has_everything`, `a_spool_ends_with_its_backup_however_that_ends` |
//! | | a setting of a role or of the database ends the dump | `a_server_that_lets_us_not_in_is_told_and_settings_of_its_own_do_no_harm` |
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
