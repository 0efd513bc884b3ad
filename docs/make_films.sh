# Films that FFmpeg draws and plays itself: scenes of four kinds of pictures and three kinds of sound, one to three in a row.
mkdir -p films scenes
picture() { case $1 in fractal) echo mandelbrot=s=160x120:r=10:start_scale=$2;; pattern) echo testsrc2=s=160x120:r=10;;
  cells) echo life=s=160x120:r=10:mold=10:seed=$2:life_color=white,format=yuv420p;; bars) echo smptebars=s=160x120:r=10;; esac; }
sound() { case $1 in tone) echo sine=f=$((200 + 40 * $2));; noise) echo anoisesrc=a=0.2:seed=$2;; quiet) echo anullsrc=r=44100;; esac; }
scene() {  # picture sound seconds number file
  ffmpeg -v error -y -f lavfi -i "$(picture $1 $4),hue=h=$((4 * $4)),scale=160:120" -f lavfi -i "$(sound $2 $4)" \
    -t $3 -ac 1 -ar 16000 -c:a aac $5 < /dev/null; }
pictures=(fractal pattern cells bars) sounds=(tone noise quiet)
echo path,tags > videos.csv
for n in $(seq 90); do
  tags="" ; : > parts
  for m in $(seq $((1 + n % 3))); do
    p=${pictures[$(((n * 7 + m * 5 + n / 12) % 4))]} s=${sounds[$(((n * 5 + m * 2 + n / 9) % 3))]}
    scene $p $s $((4 + (n + m) % 5)) $((n % 40 + m)) scenes/$n-$m.mp4; tags="$tags;$p;$s"; echo "file scenes/$n-$m.mp4" >> parts
  done
  ffmpeg -v error -y -f concat -i parts -c copy films/$n.mp4 < /dev/null; echo "films/$n.mp4,${tags#;}" >> videos.csv
done
scene fractal noise 8 51 a.mp4; scene pattern tone 7 52 b.mp4; scene cells quiet 9 53 c.mp4
printf "file a.mp4\nfile b.mp4\nfile c.mp4\n" > parts; ffmpeg -v error -y -f concat -i parts -c copy new.mp4 < /dev/null
