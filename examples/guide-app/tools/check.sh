# check.sh AVERAGES PAGE: fails unless every average is that of its 20 days, for
# one symbol computed anew, and the page names every symbol.
set -eu
awk -F, '$1 == "DDD" {
	price[++n] = $3
	if (n < 20) next
	sum = 0
	for (i = n - 19; i <= n; i++) sum += price[i]
	if (sprintf("%.2f", sum / 20) != $4) { print "day " $2 ": " sum / 20 " is not " $4; exit 1 }
}' "$1"
test "$(grep -c '<tr><td>' "$2")" = 8
