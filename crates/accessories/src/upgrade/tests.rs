use proptest::prelude::*;

use super::*;

/// A host on which an upgrade happens.
#[derive(Debug, Clone, PartialEq)]
struct World {
    on_copy: bool,
    /// Which side's image serves, on that side's data.
    serves: Option<Side>,
    copies: bool,
    old_data: bool,
    new_data: bool,
    compared: bool,
}

impl World {
    fn new(on_copy: bool) -> Self {
        Self {
            on_copy,
            serves: Some(Side::Old),
            copies: false,
            old_data: true,
            new_data: false,
            compared: false,
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Backup | Order::Verify(_) => {}
            Order::Stop => self.serves = None,
            Order::Copy => {
                assert_eq!(self.serves, None, "somebody could write during the copy");
                self.copies = true;
                self.new_data = true;
            }
            Order::Compare => self.compared = true,
            Order::ClearCopies => self.copies = false,
            Order::Replace(side) => {
                assert!(!self.copies, "two servers on one data directory");
                if side == Side::New && self.on_copy {
                    assert!(
                        self.compared && self.new_data,
                        "nothing serves that was not compared"
                    );
                }
                self.serves = Some(side);
            }
            Order::DropData(Side::Old) => {
                assert_eq!(self.serves, Some(Side::New));
                self.old_data = false;
            }
            Order::DropData(Side::New) => {
                assert_eq!(self.serves, Some(Side::Old));
                self.new_data = false;
            }
        }
    }
}

/// What happens at an order.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Done,
    Fails,
    /// The agent dies before or after the effect.
    CutBefore,
    CutAfter,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Done),
        1 => Just(Fate::Fails),
        1 => Just(Fate::CutBefore),
        1 => Just(Fate::CutAfter),
    ]
}

fn run(world: &mut World, mut upgrade: Upgrade, fates: &mut impl Iterator<Item = Fate>) -> Upgrade {
    while let Some(order) = upgrade.order() {
        upgrade = match fates.next().unwrap_or(Fate::Done) {
            Fate::Done => {
                world.carry_out(order);
                upgrade.done()
            }
            Fate::Fails => upgrade.failed("no".to_owned()),
            Fate::CutBefore => upgrade.interrupted(),
            Fate::CutAfter => {
                world.carry_out(order);
                upgrade.interrupted()
            }
        };
        assert!(
            world.old_data || upgrade.stage == Stage::DropOld || upgrade.stage == Stage::Finished,
            "the old data went without a word"
        );
        assert!(
            world.new_data || !upgrade.served || matches!(upgrade.stage, Stage::BackDrop | Stage::Returned),
            "what was written since went without a word"
        );
    }
    upgrade
}

proptest! {
    #[test]
    fn wherever_it_is_cut_one_server_runs_on_its_own_data(
        on_copy in any::<bool>(),
        fates in proptest::collection::vec(fate(), 0..30),
        undos in 0_u8..4,
        after in proptest::collection::vec(fate(), 0..40),
    ) {
        let mut world = World::new(on_copy);
        let mut upgrade = run(&mut world, Upgrade::begin(on_copy), &mut fates.into_iter());
        match upgrade.stage {
            Stage::Returned => {
                prop_assert_eq!(world.serves, Some(Side::Old));
                prop_assert!(world.old_data && !world.copies && !world.new_data);
                prop_assert!(upgrade.why.is_some(), "it says why");
                return Ok(());
            }
            Stage::Kept => prop_assert!(on_copy && world.old_data && world.new_data),
            Stage::Finished => prop_assert!(!on_copy),
            other => prop_assert!(false, "it stops at {:?}", other),
        }
        prop_assert_eq!(world.serves, Some(Side::New));
        prop_assert_eq!(upgrade.clone().undo().is_some(), on_copy);
        prop_assert_eq!(upgrade.clone().confirm().is_some(), on_copy);
        if !on_copy {
            return Ok(());
        }
        // Back and forth, cut anywhere: both sides' data is there all the time.
        let mut after = after.into_iter();
        for _ in 0..undos {
            upgrade = run(&mut world, upgrade.undo().expect("it waits for a word"), &mut after);
            prop_assert!(upgrade.waits());
            prop_assert!(world.old_data && world.new_data && !world.copies);
            let side = if upgrade.stage == Stage::Kept { Side::New } else { Side::Old };
            prop_assert_eq!(world.serves, Some(side));
        }
        let side = world.serves;
        let over = run(&mut world, upgrade.confirm().expect("it waits for a word"), &mut after);
        let stage = if side == Some(Side::New) { Stage::Finished } else { Stage::Returned };
        prop_assert_eq!(over.stage, stage);
        prop_assert_eq!(world.serves, side);
        prop_assert_eq!((world.new_data, world.old_data), (side == Some(Side::New), side == Some(Side::Old)));
    }
}

#[test]
fn a_backup_that_fails_leaves_everything_as_it_was() {
    let upgrade = Upgrade::begin(true).failed("no room".to_owned());
    assert_eq!(upgrade.stage, Stage::Returned);
    assert!(!upgrade.in_progress());
    assert_eq!(upgrade.why.as_deref(), Some("no room"));
}

#[test]
fn the_keeper_leaves_a_container_alone_only_while_it_is_being_replaced() {
    assert!(!Upgrade::begin(true).owns_container());
    assert!(Upgrade::begin(true).done().owns_container());
    let kept = Upgrade {
        on_copy: true,
        stage: Stage::Kept,
        why: None,
        served: true,
    };
    assert!(!kept.owns_container());
}
