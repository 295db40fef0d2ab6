# perl: fork, pipes, signals, sleep and select, regular expressions over a growing file
use strict;
use warnings;
use Time::HiRes qw(sleep);
use POSIX ();
my $dir = shift;
chdir $dir or die;
my @errors;
my ($alarms, $usr) = (0, 0);
$SIG{ALRM} = sub { $alarms++ };
Time::HiRes::setitimer(Time::HiRes::ITIMER_REAL(), 0.02, 0.02);
pipe(my $r, my $w) or die;
my @kids;
for my $k (1 .. 4) {
	my $pid = fork() // die;
	if (!$pid) {
		close $r;
		$w->autoflush(1);
		for my $i (1 .. 100) {
			syswrite($w, sprintf("%d %05d\n", $k, $i)) == 8 or POSIX::_exit(9);
			select undef, undef, undef, 0.02;
		}
		POSIX::_exit($k);
	}
	push @kids, $pid;
}
close $w;
my %count;
open(my $log, '+>>', 'log') or die;
while (1) {
	my $n = sysread($r, my $line, 8);
	if (!defined $n) { next if $!{EINTR}; push @errors, "read: $!"; last }
	last if !$n;
	if ($line !~ /^(\d) (\d{5})\n$/) { push @errors, "line '$line'"; last }
	push @errors, "child $1 sent $2 after " . ($count{$1} // 0) if $2 != ($count{$1} // 0) + 1;
	$count{$1} = $2;
	print $log $line;
}
$log->flush;
seek $log, 0, 0;
my $lines = () = <$log>;
push @errors, "$lines lines in the log" if $lines != 400;
for my $k (1 .. 4) {
	my $pid;
	do { $pid = waitpid($kids[$k - 1], 0) } while ($pid < 0 && $!{EINTR});
	push @errors, "child $k: status $?" if $? != $k << 8;
	push @errors, "child $k: $count{$k} lines" if $count{$k} != 100;
}
push @errors, "$alarms alarms" if $alarms < 20;
open(my $rep, '>>', 'report') or die;
print $rep "$_\n" for @errors;
close $rep;
open(my $d, '>', 'done.new') or die;
print $d @errors ? "bad\n" : "ok\n";
close $d;
rename 'done.new', 'done';
exit !!@errors;
