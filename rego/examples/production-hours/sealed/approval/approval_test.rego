package sealed.approval_test

import data.sealed.approval

test_leaves_votes_alone if {
	d := approval.decision with input as {}
	d.effect == "allow"
}
