// Package harness runs programs through the whole pipeline: the five real commands, built once, against real
// processes, and looks afterwards for whatever they may have left behind.
//
// A test starts a [Job] (a fixture of test/testdata/prog or a real program), puts it through a [Flavour] (dump and let
// go on, kill and restore, by ticket, through filters, ...) and calls [Job.Finish], which tells the program to look at
// itself and reports what it says. When the test ends the job's cleanup fails it for every task, cgroup or temporary
// file that is left.
//
// The test process is a child subreaper: tasks that cr-restore makes become its children when cr-restore ends, so their
// exit status can be had and zombies do not wait for pid 1.
package harness
