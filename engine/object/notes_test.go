package object

import "testing"

func TestNote(t *testing.T) {
	type mine struct{ n int }
	type other struct{ n int }
	root := &Process{}
	root.Threads = []*Thread{{Process: root}, {Process: root}}
	child := &Process{Parent: root}
	Note[mine](root).n = 1
	Note[other](child).n = 2
	if Note[mine](child).n != 1 || Note[other](root).n != 2 || Note[mine](root.Threads[1].AsProcess()).n != 1 {
		t.Error("notes of one dump differ by process")
	}
	if Note[mine](&Process{}).n != 0 {
		t.Error("another dump has the same notes")
	}
}
