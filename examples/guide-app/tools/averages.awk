# Reads "symbol,day,cents" in order; adds the averages over 20 and over 200 days.
$1 != symbol { symbol = $1; n = 0; short = 0; long = 0 }
{
	n++
	price[n] = $3
	short += $3
	long += $3
	if (n > 20) short -= price[n - 20]
	if (n > 200) long -= price[n - 200]
	printf "%s,%d,%d,%.2f,%.2f\n", $1, $2, $3, short / (n < 20 ? n : 20), long / (n < 200 ? n : 200)
}
